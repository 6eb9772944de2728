"""Energy-gated attention: what is published of how arXiv 2605.21842 and arXiv 2605.26355 came to their results."""

from __future__ import annotations

import torch

from biases import zoo
from biases.ablation.training import generator, training_batch
from biases.claims.evidence import FAILS, HOLDS, INCONCLUSIVE, NOT_REPRODUCIBLE, Evidence
from biases.claims.ledger import claim

P1, P2 = "2605.21842", "2605.26355"


@claim(
    id="ega-identical-batches",
    paper=P1,
    location="section 4.1; also 2605.26355 and 2606.01258",
    kind="reading",
    statement='All models were trained on "identical mini-batches throughout".',
)
def identical_batches() -> Evidence:
    tokens = torch.arange(4000)

    def starts(name: str) -> list[int]:
        """Of the first windows that are drawn after a model was built."""
        zoo.model("char-gpt", attention=name, layers=1, dim=32, heads=2)
        return torch.randint(0, len(tokens) - 256, (4,)).tolist()

    torch.manual_seed(42)
    in_turn = {name: starts(name) for name in ("standard", "ega")}
    ours = [training_batch(tokens, 256, 4, generator(42, "batches"))[0][:, 0].tolist() for _ in range(2)]
    return Evidence(
        verdict=FAILS,
        text="By the released script one global generator is seeded once, with 42, and draws weights, dropout and "
        "windows of all models, which are trained one after another without seeding it again; only the script of phase "
        "1 shares batches. As an illustration, two small models built in that way first draw windows from "
        f"{in_turn['standard']} and {in_turn['ega']}; batches drawn from the seed and the purpose alone, as here, "
        f"start at {ours[0]} for both.",
        counterexample={"seeded": "once a script", "models": "one after another", "seeded again": False},
        values={"in turn": in_turn, "ours": ours},
        source="AthanasiosZeris/energy-gated-attention 3425b81, read",
    )


@claim(
    id="ega-two-seeds",
    paper=P2,
    location="beside section 4.1 and the abstract, which say one seed",
    kind="reading",
    statement='The gain was seen in "two independent training runs with different seeds".',
)
def two_seeds() -> Evidence:
    from biases.stats import attainable_seeds, smallest_p

    p, needed = smallest_p(2), attainable_seeds(0.95)
    text = (
        "The second number is not given and the released code has seed 42 only. If both were, an exact paired test of "
        f"2 seeds could not give p below {p:g}; it takes {needed} seeds to be able to reach 0.05."
    )
    verdict = NOT_REPRODUCIBLE if p > 0.05 else INCONCLUSIVE
    return Evidence(verdict=verdict, text=text, values={"smallest p of 2 seeds": p, "seeds for 0.05": needed})


@claim(
    id="ega-ptb-gain",
    paper=P1,
    location="Table 2",
    kind="reading",
    statement="On Penn Treebank EGA-1 gains +0.1009.",
)
def ptb_gain() -> Evidence:
    base, gated = 1.0897, 0.9889
    return Evidence(
        verdict=NOT_REPRODUCIBLE,
        text=f"Table 2 has {base} and {gated}, which are {base - gated:.4f} apart, one seed each. No loader, script or "
        "preparation of the text is released; of the text only its numbers of characters are given.",
        values={"difference": round(base - gated, 4)},
        source="Table 2; AthanasiosZeris/energy-gated-attention 3425b81, read",
    )


@claim(
    id="ega-wavelet-order",
    paper=P1,
    location="section 4.5 beside Table 3",
    kind="arithmetic",
    statement="Among fixed wavelets the gain is ordered db2 > db4 > Morlet.",
)
def wavelet_order() -> Evidence:
    losses = {"db2": 1.4692, "db4": 1.4748, "morlet": 1.4733}  # Table 3; the baseline is Table 1's
    gains = {name: round(1.4742 - loss, 4) for name, loss in losses.items()}
    order = sorted(gains, key=lambda name: -gains[name])
    text = f"By Table 3 the gains are {', '.join(f'{name} {gains[name]:+.4f}' for name in order)} nats, in this order."
    if order == ["db2", "db4", "morlet"]:
        return Evidence(verdict=HOLDS, text=text, values=gains)
    return Evidence(verdict=FAILS, text=text, counterexample={"order by Table 3": order}, values=gains)
