"""The table of families: every entry leads to a family that has what the table says of it."""

from __future__ import annotations

import pytest

from madtp_cli.costs import published
from madtp_cli.costs.published import Call
from madtp_cli.errors import SourceError
from madtp_cli.families import FAMILIES, OLDEST
from madtp_cli.models.configs import default_config
from madtp_cli.models.family import families, family_of, model_class
from tests.models.kinds import kinds

CALLS = [(family.name, task, call) for family in families() for task, call in family.calls.items()]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_what_its_entry_says(name: str) -> None:
    """Name, tasks and settings; a model, a card and a published call for every task."""
    family, entry = family_of(name), FAMILIES[name]
    assert family.name == name
    tasks = set(entry.sites)
    for known in (family.models, family.cards, family.calls, family.exports()):
        assert set(known) == tasks
    assert set(entry.settings) <= set(family.configuration.settings)
    assert set(family.architectures.values()) <= tasks
    for task, model in family.models.items():
        assert (model.family, model.task) == (name, task)


@pytest.mark.parametrize(("name", "task"), kinds())
def test_models_have_the_sites_of_the_table(name: str, task: str) -> None:
    """In its order; those that it gives a reason for do not prune."""
    sites = model_class(name, task).sites_of(default_config(name, task))
    assert [site.name for site in sites] == list(FAMILIES[name].sites[task])
    assert [site.prunes for site in sites] == [reason is None for reason in FAMILIES[name].sites[task].values()]


def test_folders_without_a_family_are_of_one_that_is_there() -> None:
    assert OLDEST in FAMILIES


def test_an_unknown_family_is_refused_with_those_there_are() -> None:
    with pytest.raises(SourceError, match=f"nonesuch: is no family of models; there are {', '.join(FAMILIES)}"):
        family_of("nonesuch")


@pytest.mark.parametrize(("name", "task", "call"), CALLS, ids=[f"{name}-{task}" for name, task, _ in CALLS])
def test_every_call_has_an_image_and_reads_texts(name: str, task: str, call: Call) -> None:
    """A sample's text is no longer than what the call pads it to."""
    assert call.passes[published.IMAGE] >= 1
    assert 0 < call.sample_tokens <= call.text_tokens
