import pytest

from tests.browser import open_browser


@pytest.fixture(scope="module")  # while it runs, nothing else can use asyncio
def browser():
    with open_browser() as browser:
        yield browser
