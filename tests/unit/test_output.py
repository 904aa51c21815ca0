import io

from ray_recsys.commands.output import Table, facts, write_tables


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


TABLES = [
    facts("prepared", num_users=1234567, ndcg=0.25, passed=True, missing=None),
    Table(("title", "score"), [("[bold] Heat", 0.5), ("Se7en", 12.25)]),
]


def test_a_pipe_gets_aligned_text() -> None:
    stream = io.StringIO()
    write_tables(TABLES, stream)
    assert stream.getvalue() == (
        "prepared\nnum users  1,234,567\nndcg       0.2500\npassed     yes\n\n"
        "title          score\n[bold] Heat   0.5000\nSe7en        12.2500\n"
    )


def test_a_terminal_gets_ruled_tables_and_no_markup_from_data() -> None:
    stream = _Terminal()
    write_tables(TABLES, stream)
    text = stream.getvalue()
    assert "─" in text
    assert "[bold] Heat" in text
    assert "1,234,567" in text


def test_an_empty_table_is_its_header() -> None:
    stream = io.StringIO()
    write_tables([Table(("a", "b"), [])], stream)
    assert stream.getvalue() == "a  b\n"
