"""The values of prepare.format: parameters check them, readers parse them, and each task declares its kinds of data."""

AUTO = "auto"  # detected from the fields of the first rows
GENERATED = ("helpdesk", "instructions")  # by stage prepare
ROWS = (  # of the user's data; tasks/data/formats.py parses them
    "preference", "implicit", "demonstration", "unpaired", "ratings", "rankings", "question_answer", "prompts",
)  # fmt: skip
