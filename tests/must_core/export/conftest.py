import pytest

from tests.must_core.export.adapted import KINDS, Adapted, make_adapted


@pytest.fixture(scope="session", params=KINDS)
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """A classifier of every kind."""
    return make_adapted(tmp_path_factory.mktemp(request.param), KINDS[request.param])


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """The smallest classifier, where the kind does not matter."""
    return make_adapted(tmp_path_factory.mktemp("clip"), KINDS["quick_gelu"])
