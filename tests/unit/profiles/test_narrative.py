"""What a narrative may hold (R4 narrative.html): text, lists, tables, links and images; nothing that acts."""

from __future__ import annotations

from typing import Any

import pytest

from profiles.validator.narrative import problem
from profiles.validator.structure import check


def div(inner: str, more: str = "") -> str:
    return f'<div xmlns="http://www.w3.org/1999/xhtml"{more}>{inner}</div>'


GOOD = [
    "Léa",
    "<p>Un <b>texte</b>,<br/> &nbsp;deux &eacute;l&eacute;ments &amp; <i>plus</i></p>",
    '<table class="grid" border="1"><thead><tr><th colspan="2">a</th></tr></thead><tbody><tr/></tbody></table>',
    '<a href="http://example.org/x?y=1">lien</a> <a href="#note">note</a> <a name="note">ici</a>',
    '<a href="Patient/1">p</a>',
    '<a href="mailto:a@example.org">a</a> <a href="tel:+33100000000">t</a>',
    '<img src="#image" alt="x"/>',
    '<img src="data:image/png;base64,AAAA" alt="x"/>',
    '<span style="color: red; width: 10px">x</span><!-- a remark -->',
    '<span style="background: url(data:image/png;base64,AAAA)">x</span>',
    '<p xml:lang="fr" lang="fr" dir="ltr" title="t" id="i">x</p>',
    "javascript:alert(1) is only text, and so is onclick=",
]
BAD = [
    "<script>alert(1)</script>",
    "<p>x</p><SCRIPT>alert(1)</SCRIPT>",
    '<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    '<script xmlns="http://www.w3.org/2000/svg">alert(1)</script>',
    '<p onclick="alert(1)">x</p>',
    '<p ONCLICK="alert(1)">x</p>',
    "<form action='x'><input name='a'/></form>",
    "<iframe src='http://example.org'></iframe>",
    "<object data='x'></object>",
    "<embed src='x'/>",
    "<link rel='stylesheet' href='http://example.org/a.css'/>",
    "<style>body {display: none}</style>",
    "<base href='http://example.org/'/>",
    "<meta http-equiv='refresh' content='0;url=http://example.org'/>",
    "<head><title>x</title></head>",
    '<a href="javascript:alert(1)">x</a>',
    '<a href=" java&#10;script:alert(1)">x</a>',
    '<a href="&#1;javascript:alert(1)">x</a>',
    '<a href="JaVaScRiPt:alert(1)">x</a>',
    '<a href="vbscript:x">x</a>',
    '<a href="data:text/html,&lt;script&gt;alert(1)&lt;/script&gt;">x</a>',
    '<img src="data:image/svg+xml;base64,AAAA" alt="x"/>',
    '<img src="data:text/html,x" alt="x"/>',
    '<img src="file:///etc/passwd" alt="x"/>',
    '<span style="background: url(http://example.org/seen.png)">x</span>',
    '<span style="background: url(//example.org/seen.png)">x</span>',
    '<span style="width: expression(alert(1))">x</span>',
    '<span style="background: u\\72l(http://example.org)">x</span>',
    '<p xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="http://example.org">x</p>',
    '<td background="http://example.org/seen.png">x</td>',
    "<?php echo 1 ?>x",
    "<p>never closed",
    "&undeclared;",
    "",
    "   <p> </p> ",
]


@pytest.mark.parametrize("inner", GOOD)
def test_text_and_form_are_allowed(inner: str) -> None:
    assert problem(div(inner)) == ""


@pytest.mark.parametrize("inner", BAD)
def test_what_acts_or_loads_or_shows_nothing_is_refused(inner: str) -> None:
    assert problem(div(inner))


def test_the_div_itself_may_not_act() -> None:
    assert problem(div("x", ' onmouseover="alert(1)"'))


def test_entities_of_a_document_type_are_refused() -> None:
    bomb = '<!DOCTYPE div [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><div xmlns="http://www.w3.org/1999/xhtml">&b;</div>'
    assert problem(bomb)


def test_a_deep_or_long_narrative_is_refused_and_not_a_fault() -> None:
    assert problem(div("<b>" * 5000 + "x" + "</b>" * 5000))
    assert problem(div("x" * (9 * 1024 * 1024)))


def test_the_validator_says_where_and_why() -> None:
    patient: dict[str, Any] = {"resourceType": "Patient", "text": {"status": "generated", "div": div(BAD[0])}}
    (found,) = check(patient)
    assert (found.severity, found.code, found.expression) == ("error", "invariant", "Patient.text.div")
    assert "script" in found.diagnostics
    contained = {"resourceType": "Basic", "contained": [patient], "code": {"text": "x"}}
    assert [one.expression for one in check(contained)] == ["Basic.contained[0].text.div"]
    patient["text"]["div"] = div(GOOD[1])
    assert check(patient) == []
