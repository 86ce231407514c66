"""The document of an inspection: `tessera inspect --json` prints it, reports show it."""

from __future__ import annotations

from typing_extensions import TypedDict

BATCH_SIZES = tuple(1 << power for power in range(17))
BLOCK_SIZES = (8, 16, 32, 64, 128, 256)
RANK_COUNTS = (2, 4, 8, 16, 32, 64)


class Log(TypedDict):
    """A file that was read. `skipped` holds the first messages, `num_skipped` counts all.

    form: the form that its content was recognised as.
    notes: sentences about how it was read.
    """

    file: str
    model_id: str | None
    num_experts: int
    num_experts_source: str
    num_lines: int
    num_skipped: int
    skipped: list[str]
    form: str
    notes: list[str]


class RepeatedRun(TypedDict):
    """Equal consecutive rows; `first_token` counts from the layer's first row.

    topk_ids: without those outside the experts.
    """

    first_token: int
    num_tokens: int
    topk_ids: list[int]


class HotExpert(TypedDict):
    """An expert with at least twice the mean load."""

    expert: int
    count: int
    share: float
    over_mean: float


class Load(TypedDict):
    """How a layer's ids spread over its experts."""

    entropy_bits: float
    max_entropy_bits: float
    gini: float
    max_over_mean: float
    hot_experts: list[HotExpert]
    dead_experts: list[int]


class LoadWithRepeated(TypedDict):
    """The figures with the repeated rows included."""

    max_over_mean: float
    hot_experts: list[HotExpert]


class Blocks(TypedDict):
    """For one block size: blocks in the mean batch, and padding slots over slots."""

    block_size: int
    num_blocks: float
    padding_share: float


class Batch(TypedDict):
    """Means over `num_batches` consecutive full windows of `batch_size` tokens.

    `extrapolated`: the layer has fewer tokens, and its shares are scaled to the batch.
    """

    batch_size: int
    num_batches: int
    extrapolated: bool
    active_experts: float
    blocks: list[Blocks]


class InHindsight(TypedDict):
    """Largest over mean load of the ranks; all placements are judged on the same tokens.

    in_hindsight: balanced by the loads of these very tokens.
    """

    contiguous: float
    in_hindsight: float


class HeldOut(InHindsight):
    """The same, and a placement made from earlier tokens than those that judge it.

    balanced: by the loads of the first half of the tokens.
    """

    balanced: float


class Ranks(TypedDict):
    """Imbalance of `num_ranks` ranks, on two sets of tokens: do not compare across them.

    held_out: judged on the second half of the layer's tokens; None if a half has no id.
    all_tokens: judged on all tokens of the layer.
    """

    num_ranks: int
    held_out: HeldOut | None
    all_tokens: InHindsight


class MovedExpert(TypedDict):
    """An expert whose share of the load moves most; `shares` has one for each window."""

    expert: int
    shares: list[float]


class PlacedByFirst(TypedDict):
    """Largest over mean load of the ranks in each window.

    balanced: by a placement balanced by the loads of the first window.
    """

    num_ranks: int
    balanced: list[float]
    contiguous: list[float]


class Drift(TypedDict):
    """How a layer's load differs between consecutive windows of its tokens.

    Distances are total variation distances between shares of the load.

    window_tokens: tokens in each window.
    between: of each window and the next one.
    by_chance: of two random samples of the same load, as large as a window.
    """

    window_tokens: list[int]
    between: list[float]
    first_to_last: float
    by_chance: float
    experts: list[MovedExpert]
    placed_by_first: PlacedByFirst


class Layer(TypedDict):
    """One layer of one log; `log` indexes `Document.logs`.

    layer: its number or name; None if the file gives none.
    num_tokens: rows counted, without the `num_repeated` excluded rows.
    repeated: the first runs of excluded rows.
    num_invalid_ids: ids outside [0, num_experts), but for -1.
    num_unrecorded: rows of zeros, which no router chose, left out.
    num_empty: rows without any expert, left out.
    num_unused: slots without an expert in the other rows.
    num_held_out: tokens of the second half, on which `Ranks.held_out` is judged; 0 if there are too
        few to hold out, or only one expert.
    drift: None if there are too few tokens for windows, or they are in no order.
    """

    log: int
    layer: int | str | None
    num_tokens: int
    num_repeated: int
    repeated: list[RepeatedRun]
    num_invalid_ids: int
    num_unrecorded: int
    num_empty: int
    num_unused: int
    expert_counts: list[int]
    load: Load
    load_with_repeated: LoadWithRepeated | None
    batches: list[Batch]
    num_held_out: int
    ranks: list[Ranks]
    drift: Drift | None


class Cost(TypedDict):
    """Cost relative to the cheapest block size."""

    block_size: int
    relative_cost: float


class Advice(TypedDict):
    """The block size to use for a batch size, over all layers of the model."""

    batch_size: int
    block_size: int
    padding_share: float
    costs: list[Cost]


class Model(TypedDict):
    """Layers with the same model id (or, without one, the same file), experts and top k.

    top_k, least_top_k: ids of the tokens with the most and the fewest; 0 for loads without tokens,
        which have no batches and no advice.
    """

    name: str
    num_experts: int
    top_k: int
    least_top_k: int
    layers: list[Layer]
    advice: list[Advice]


class ComparedRanks(TypedDict):
    """Largest over mean load of the ranks on all tokens, mean over the layers."""

    num_ranks: int
    contiguous: float
    in_hindsight: float


class ComparedSide(TypedDict):
    """Figures of one of two logs, over the layers that both have.

    num_tokens, num_pairs, num_hot, num_dead: sums over the layers; the others are means.
    num_hot: experts with at least twice the mean load.
    largest_max_over_mean: of the most uneven layer.
    sorted_over_mean: load over the mean load of the experts, the hottest of each layer first.
    advice: over these layers; empty if one of the logs has loads without tokens.
    """

    name: str
    num_experts: int
    num_tokens: int
    num_pairs: int
    entropy_bits: float
    max_entropy_bits: float
    gini: float
    max_over_mean: float
    largest_max_over_mean: float
    num_hot: int
    num_dead: int
    sorted_over_mean: list[float]
    ranks: list[ComparedRanks]
    advice: list[Advice]


class ComparedLayer(TypedDict):
    """Total variation distance of a layer's load in two logs, and what chance alone makes."""

    layer: int | str | None
    distance: float
    by_chance: float


class ChangedExpert(TypedDict):
    """An expert whose share of its layer's load changed most."""

    layer: int | str | None
    expert: int
    first: float
    second: float


class PlacedRanks(TypedDict):
    """Imbalance of a placement balanced by the first log, on the second; mean over the layers."""

    num_ranks: int
    on_second: float


class Comparison(TypedDict):
    """Two logs side by side.

    num_layers: layers that both have.
    layers, experts, placed_by_first: empty if the logs have different numbers of experts.
    notes: what is not compared, in sentences.
    """

    first: ComparedSide
    second: ComparedSide
    num_layers: int
    layers: list[ComparedLayer]
    experts: list[ChangedExpert]
    placed_by_first: list[PlacedRanks]
    notes: list[str]


class CostModel(TypedDict):
    """The model behind the advice."""

    formula: str
    parameters: dict[str, float]
    source: str


class Document(TypedDict):
    """The complete result of an inspection; `comparison` is None if none was asked for."""

    version: str
    logs: list[Log]
    models: list[Model]
    comparison: Comparison | None
    limits: list[str]
    cost_model: CostModel
