"""The picture of `flowfleet status` in the documents: it is what the command prints."""

import pytest

from tests import status_picture


@pytest.mark.parametrize("page", status_picture.PAGES, ids=lambda page: page.name)
def test_a_document_shows_what_the_command_prints(page):
    (shown,) = status_picture.PLACE.findall(page.read_text(encoding="utf-8"))
    assert shown[1] == status_picture.picture(), "python -m tests.status_picture renews it"


def test_the_picture_fits_a_page():
    assert max(map(len, status_picture.picture().splitlines())) <= 100
