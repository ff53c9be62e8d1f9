"""Estimators by name: rules of the catalogue for a whole latent or block by block, and why a name
is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import vijax as vj
from experiments.gradient_variance.problems import Problem
from vijax.catalogue import CATALOGUE, OBJECTIVE_OF
from vijax.families import Blocks, FiniteSupport, Reparameterized

Estimators = dict[str, vj.Estimator]


def build(
    names: Iterable[str], problem: Problem, objective: vj.Objective, num_samples: int
) -> tuple[Estimators, dict[str, str]]:
    """(estimators by name, the reason for every name that is illegal here or unknown).

    A name is one of `vijax.catalogue`, for every latent and block alike, or
    `block=name+block=name`, or one that the problem's author gave; all-legal is all of them.

    Raises:
      ValueError: if the author's name is one of the catalogue's, too.
    """
    own = problem.own(num_samples, objective)
    taken = set(own) & set(every_name(problem.guide))
    if taken:
        raise ValueError(f"estimators of the file are named as built-in ones are: {sorted(taken)}.")
    wanted = list(dict.fromkeys(names))
    if "all-legal" in wanted:
        named = [name for name in wanted if name != "all-legal"]
        wanted = list(dict.fromkeys([*named, *every_name(problem.guide), *own]))
    made: Estimators = {}
    refused: dict[str, str] = {}
    for name in wanted:
        try:
            made[name] = own.get(name) or estimator(name, problem, objective, num_samples)
        except ValueError as reason:
            refused[name] = str(reason) + (f" The file's own: {', '.join(own)}." if own else "")
    return made, refused


def estimator(
    name: str, problem: Problem, objective: vj.Objective, num_samples: int
) -> vj.Estimator:
    """The estimator of a name; ValueError if it is unknown or illegal here."""
    guide, parts = problem.guide, parts_of(problem.guide)
    chosen = rules_of(name, parts)
    apart = [rule for rule in chosen.values() if rule in OBJECTIVE_OF]
    if apart:
        raise ValueError(f"{apart[0]} is for {OBJECTIVE_OF[apart[0]].name} alone.")
    rules: Any = {part: CATALOGUE[rule](parts[part]) for part, rule in chosen.items()}
    first, same = next(iter(parts)), len(set(chosen.values())) == 1
    counts: Any = {
        part: num_samples if part == first else rule.requires.min_samples
        for part, rule in rules.items()
    }
    special: Any = objective
    if len(guide.families) > 1:
        special = {"w": special, "z": vj.objectives.elbo}
    elif same:  # one rule for the whole latent
        rules, counts = CATALOGUE[chosen[first]](_only_family(guide)), num_samples
    return vj.estimator(
        problem.model,
        guide,
        rules=rules,
        objective=special,
        num_samples=counts,
        num_data=problem.num_data,
    )


def rules_of(name: str, parts: Mapping[str, vj.Family]) -> dict[str, str]:
    """The rule's name for every part; ValueError for what is no name here."""
    pieces = _split(name)
    if name.split("=")[0] not in parts:
        chosen = dict.fromkeys(parts, name)
    elif all("=" in piece for piece in pieces):
        chosen = dict(piece.split("=", 1) for piece in pieces)
    else:
        raise ValueError(f"{name!r}: write block=rule for every one of {', '.join(parts)}.")
    unknown = [rule for rule in chosen.values() if rule not in CATALOGUE]
    if unknown or set(chosen) != set(parts):
        known = (
            f"the blocks are {', '.join(parts)}"
            if not unknown
            else "see `python -m vijax.catalogue`"
        )
        raise ValueError(
            f"{name!r} is no estimator here: {known}. Names look like score() or "
            f"c=enumerated()+z=pathwise()."
        )
    return chosen


def judge(
    made: Estimators, problem: Problem, objective: vj.Objective, num_samples: int
) -> vj.Estimator | None:
    """An unbiased estimator of this objective: the problem's trainer, else the first that says it
    is, of the named, then of the problem's list; or none.
    """
    for name in (problem.trainer, *unbiased(made, problem), *unbiased(problem.estimators, problem)):
        try:
            return made.get(name) or estimator(name, problem, objective, num_samples)
        except ValueError:  # no name, or illegal here
            continue
    return None


def unbiased(names: Iterable[str], problem: Problem) -> list[str]:
    """Those whose rules say that they are; an author's own say nothing."""
    parts = parts_of(problem.guide)

    def says_so(name: str) -> bool:
        try:
            chosen = rules_of(name, parts)
        except ValueError:
            return False
        return all(CATALOGUE[rule](parts[part]).requires.unbiased for part, rule in chosen.items())

    return [name for name in names if says_so(name)]


def every_name(guide: vj.Guide) -> list[str]:
    """Every rule for the whole; and with several blocks every rule for each, the others at the
    simplest rule that fits.
    """
    parts = parts_of(guide)
    names = list(CATALOGUE)
    if len(parts) > 1:
        usual = {part: _usual(family) for part, family in parts.items()}
        names += [
            "+".join(f"{p}={rule if p == part else usual[p]}" for p in parts)
            for part in parts
            for rule in CATALOGUE
        ]
    return list(dict.fromkeys(names))


def parts_of(guide: vj.Guide) -> dict[str, vj.Family]:
    """The latents, or the blocks of the only one, that can have rules of their own; {"": family} if
    there is one.
    """
    if len(guide.families) > 1:
        return dict(guide.families)
    family = _only_family(guide)
    blocks = family.traits.get(Blocks)
    return {"": family} if blocks is None else dict(blocks.families)


def _usual(family: vj.Family) -> str:
    finite = family.traits.get(FiniteSupport)
    if finite is not None and finite.size <= 64:
        return "enumerated()"
    return "score()" if family.traits.get(Reparameterized) is None else "pathwise()"


def _split(name: str) -> list[str]:
    """At every + outside parentheses."""
    parts, depth = [""], 0
    for letter in name:
        depth += (letter == "(") - (letter == ")")
        if letter == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _only_family(guide: vj.Guide) -> vj.Family:
    """Of the only latent."""
    (family,) = guide.families.values()
    return family
