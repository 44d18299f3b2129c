"""The UID tables against the registry of pynetdicom, and the choice among proposals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts

from dicom_node.contexts import (
    ABSTRACT_SYNTAX_NOT_SUPPORTED,
    ACCEPTED,
    IMPLICIT_LE,
    JPEG_BASELINE,
    TRANSFER_SYNTAXES,
    TRANSFER_SYNTAXES_NOT_SUPPORTED,
    VERIFICATION,
    Answered,
    Proposed,
    negotiate,
    storage_class,
    valid_uid,
)

US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"


def test_every_transfer_syntax_of_the_registry_is_in_the_table() -> None:
    assert set(TRANSFER_SYNTAXES) == set(ALL_TRANSFER_SYNTAXES)


def test_the_table_agrees_with_the_registry_on_how_data_sets_are_written() -> None:
    from pydicom.uid import UID

    for uid, syntax in TRANSFER_SYNTAXES.items():
        known = UID(uid)
        assert syntax.explicit == (not known.is_implicit_VR)
        assert syntax.little == known.is_little_endian
        assert syntax.deflated == known.is_deflated
        assert syntax.encapsulated == known.is_encapsulated, uid


def test_every_storage_class_of_the_registry_is_accepted() -> None:
    assert all(storage_class(str(context.abstract_syntax)) for context in AllStoragePresentationContexts)


@pytest.mark.parametrize(
    "uid",
    [
        VERIFICATION,
        "1.2.840.10008.5.1.4.1.2.2.1",
        "1.2.840.10008.5.1.4.31",
        "1.2.840.10008.1.20.1",
        "1.2.840.10008.5.1.4.1.1.201.6",
        "1.2.840.10008.5.1.4.1.1.200.4",
        "not a uid",
        "",
    ],
)
def test_what_is_no_storage_is_refused(uid: str) -> None:
    assert not storage_class(uid)


def test_private_classes_depend_on_the_policy() -> None:
    assert storage_class("1.3.12.2.1107.5.9.1")
    assert not storage_class("1.3.12.2.1107.5.9.1", private=False)


def test_the_first_transfer_syntax_of_the_sender_that_is_known_is_chosen() -> None:
    answers = negotiate(
        [
            Proposed(1, US_MULTIFRAME, ("1.2.3.4", JPEG_BASELINE, IMPLICIT_LE)),
            Proposed(3, US_MULTIFRAME, ("1.2.3.4",)),
            Proposed(5, "1.2.840.10008.5.1.4.31", (IMPLICIT_LE,)),
            Proposed(7, US_MULTIFRAME, ()),
        ]
    )
    assert answers[0] == Answered(1, ACCEPTED, US_MULTIFRAME, JPEG_BASELINE)
    assert [answer.result for answer in answers[1:]] == [
        TRANSFER_SYNTAXES_NOT_SUPPORTED,
        ABSTRACT_SYNTAX_NOT_SUPPORTED,
        TRANSFER_SYNTAXES_NOT_SUPPORTED,
    ]


@given(st.text(max_size=70))
def test_a_valid_uid_can_stand_in_no_path(text: str) -> None:
    if valid_uid(text):
        assert set(text) <= set("0123456789.") and len(text) <= 64
    else:
        assert not text or len(text) > 64 or set(text) - set("0123456789.") or not text.strip(".")
