"""The page of `neuronprof validate`: two tables."""

from collections.abc import Sequence
from html import escape

_STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}
td,th{padding:.25em .8em;text-align:left;border-bottom:1px solid #ddd}th{border-bottom:2px solid #888}"""


def page(rows: Sequence[Sequence[str]], scores: Sequence[Sequence[str]]) -> str:
    """Predicted beside measured steps, and errors by dataset; the first line of each table is its heading."""
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>neuronprof validate</title><style>{_STYLE}</style>"
        f"<h1>Predicted beside measured training steps</h1><h2>By dataset</h2>{_table(scores)}<h2>By row</h2>{_table(rows)}</html>\n"
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    heading, *body = ["".join(f"<{tag}>{escape(c)}</{tag}>" for c in line) for line, tag in _tagged(lines)]
    return (
        f"<table><thead><tr>{heading}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in body)}</tbody></table>"
    )


def _tagged(lines: Sequence[Sequence[str]]) -> list[tuple[Sequence[str], str]]:
    return [(line, "td" if number else "th") for number, line in enumerate(lines)]
