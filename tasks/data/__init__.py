"""The user's data: readers, formats, cleaning, the data card, and what each kind of data offers."""
