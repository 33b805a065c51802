"""Table 2 of the AlignEZ paper: URIAL's in-context examples alone, and with an edit in the same version.

    python -m research.table2 --model DIR --data DIR --seeds 3 --out artifacts/research

URIAL's examples (Lin et al., arXiv 2312.01552) are read from the folder. Without one, or where they exceed the model's
context, the examples are the model's own answers under the persona (the method `urial`). Edits are fitted without the
examples, as for any prefix.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from alignez_core.prompts import Prefix, render
from alignez_core.proof.arms import BARE, PROMPT, Arm
from research.data import urial_prefix
from research.figures import bars, publish
from research.lab import Lab, ModelSource, caption
from research.runner import Row, parser
from research.slices import about, arms_table, compare, groups_of, net_win

URIAL = "urial"
EDITED = ("urial + alignez", "urial + distill")


def options() -> argparse.ArgumentParser:
    """The command line."""
    return parser(__doc__, "table2")


def run(args: argparse.Namespace) -> None:
    """Makes the missing rows, then the table and the plot."""
    rows = compare(args, "table2", partial(_arms, args), over=(BARE, PROMPT, URIAL))
    groups, key = groups_of(rows), ModelSource.of(args.model).key
    parts = [
        caption(args),
        f"Examples: {about(rows, 'examples')}. `distill`: {about(rows, 'distill')}.",
        arms_table(rows, EDITED, over=URIAL),
        arms_table(rows, (URIAL, *EDITED)),
    ]
    shown = {arm: [net_win(rows, group, arm, URIAL) for group in groups] for arm in EDITED}
    figure = bars(groups, shown, f"{key}: net win over URIAL alone", "net win")
    publish(args.out, f"table2-{key}", "\n\n".join(parts), figure)


def _arms(args: argparse.Namespace, lab: Lab, slices: Sequence[str]) -> tuple[list[Arm], Row]:
    prefix, examples = urial_prefix(args.data), "URIAL's"
    if prefix is None or not _fits(lab, prefix, slices):
        prefix, examples = lab.fit("urial").prefix, "the model's own answers"
    assert prefix is not None  # the method serves one
    lab.drop_without_room(slices, prefix)
    distill = lab.fit("distill")
    arms = [lab.arm(EDITED[0], lab.fit("alignez"), prefix), lab.arm(EDITED[1], distill, prefix)]
    return [Arm(URIAL, prefix=prefix), *arms], {"examples": examples, "distill": distill.choice["chosen"]}


def _fits(lab: Lab, prefix: Prefix, slices: Sequence[str]) -> bool:
    """True if half of the queries leave room for an answer behind the examples."""
    engine, form = lab.engine, lab.engine.prompt_format
    room = engine.info.context_length - lab.config.answer_tokens
    queries = [sample.query for group in slices for sample in lab.samples[group]]
    fitting = sum(len(engine.tokenize(render(form, query, prefix=prefix))) <= room for query in queries)
    return 2 * fitting >= len(queries)


if __name__ == "__main__":
    run(options().parse_args())
