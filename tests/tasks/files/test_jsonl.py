"""JSON Lines are exact to the byte, because DVC compares files by their bytes."""

from tasks.files.jsonl import read_jsonl, write_jsonl


def test_rows_are_compact_utf8_lines_with_keys_in_their_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"b": "ü", "a": [1, 0.5]}, {"a": None}])
    assert path.read_bytes() == '{"b":"ü","a":[1,0.5]}\n{"a":null}\n'.encode()
    assert read_jsonl(path) == [{"b": "ü", "a": [1, 0.5]}, {"a": None}]


def test_a_limit_reads_only_the_first_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": number} for number in range(3)])
    assert read_jsonl(path, 2) == [{"a": 0}, {"a": 1}]
    path.write_text('{"a":0}\nnot JSON\n')
    assert read_jsonl(path, 1) == [{"a": 0}]
