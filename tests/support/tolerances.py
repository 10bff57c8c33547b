"""The largest allowed errors of the tests, one row per operation, dtype and backend.

A row holds the tolerance, absolute unless its reason says otherwise, and the reason. Backend
"reference" is the plain implementation in scrd_fast.ops, "published" the recorded numbers; dtype is
that of the input.
"""

TOLERANCES: dict[tuple[str, str, str], tuple[float, str]] = {
    ("anomaly_map", "float64", "reference"): (
        1e-12, "rounding of two products with rows that sum to 1, on maps up to 6"),
    ("anomaly_map", "float32", "reference"): (
        5e-6, "distances near 1 carry 6e-8 each; three scales, two products, maps up to 6"),
    ("anomaly_map", "bfloat16", "reference"): (
        5e-6, "the features are exact in float32, where everything is computed"),
    ("anomaly_map", "float32", "native"): (
        5e-6, "as the reference; sums over channels in another order, below 3e-7 each"),
    ("anomaly_map", "bfloat16", "native"): (
        5e-6, "as the reference: a bfloat16 product is exact in float32, the sums are float32"),
    ("anomaly_map", "float32", "triton"): (
        5e-6, "as the reference; three TF32 products keep 21 bits of each float32 one"),
    ("anomaly_map", "bfloat16", "triton"): (5e-6, "the features are exact in float32"),
    ("anomaly_map", "float16", "triton"): (5e-6, "the features are exact in float32"),
    ("simplex_noise", "float64", "reference"): (
        1e-12, "the same sum in another order; a wrong set of lattice points is worth up to 2e-4"),
    ("simplex_noise", "float32", "native"): (
        1.5e-6, "eight float32 terms per octave, which together weigh 2.4; 7e-7 seen"),
    ("simplex_noise", "float32", "triton"): (
        1.5e-6, "as native; 6e-7 seen in Triton's interpreter, which fuses no float32 sums"),
    ("simplex_noise", "float32", "reference"): (3e-7, "sums up to 3, rounded once"),
    ("add_noise", "float64", "reference"): (1e-14, "one rounding of the sum of pixel and noise"),
    ("add_noise", "float32", "reference"): (
        2.5e-7, "the noise is rounded to float32, then the sum below 2 is"),
    ("add_noise", "float32", "native"): (
        1.5e-6, "times the strength where that is above 1: as simplex_noise"),
    ("add_noise", "float32", "triton"): (
        1.5e-6, "times the strength where that is above 1: as simplex_noise"),
    ("add_noise", "float16", "triton"): (
        5e-4, "one rounding of sums below 2, or below 4 of which the strength is 3"),
    ("add_noise", "bfloat16", "triton"): (
        8e-3, "one rounding, as float16; Triton's interpreter cuts off instead"),
    ("preprocess", "uint8", "reference"): (
        1.5e-6, "three float32 roundings of values up to 1, divided by std 0.224"),
    ("preprocess", "uint16", "reference"): (
        1.5e-6, "three float32 roundings of values up to 1, divided by std 0.224"),
    ("preprocess", "float32", "reference"): (
        1.5e-6, "three float32 roundings of values up to 1, divided by std 0.224"),
    ("preprocess", "float64", "reference"): (
        1.5e-6, "as float32, after one more rounding of the input to float32"),
    ("preprocess", "uint8", "native"): (
        1e-6, "as the reference with one rounding less; 9.2e-7 at most over 6000 random images"),
    ("preprocess", "uint16", "native"): (
        1e-6, "as the reference with one rounding less; 9.2e-7 at most over 6000 random images"),
    ("preprocess", "float32", "native"): (
        1e-6, "as the reference with one rounding less; 9.2e-7 at most over 6000 random images"),
    ("preprocess", "float64", "native"): (
        1e-6, "as float32, after one more rounding of the input to float32"),
    ("preprocess", "uint8", "triton"): (
        1.5e-6, "as the reference with one rounding less, and sums that may be fused"),
    ("preprocess", "uint16", "triton"): (
        1.5e-6, "as the reference with one rounding less, and sums that may be fused"),
    ("preprocess", "float32", "triton"): (
        1.5e-6, "as the reference with one rounding less, and sums that may be fused"),
    ("preprocess", "float64", "triton"): (
        1.5e-6, "as float32, after one more rounding of the input to float32"),
    ("contrastive_loss", "float64", "reference"): (1e-12, "rounding of sums of a few hundred"),
    ("contrastive_loss", "float32", "reference"): (
        2e-6, "distances near 1 carry 6e-8 each; the ratio of two sums of three"),
    ("contrastive_loss", "bfloat16", "reference"): (
        2e-6, "the features are exact in float32, where everything is computed"),
    ("contrastive_loss", "float16", "reference"): (2e-6, "as bfloat16"),
    ("contrastive_loss", "float32", "native"): (
        2e-7, "float32 sums of 4096 at most, all else float64, rounded once; 1.2e-7 seen"),
    ("contrastive_loss", "bfloat16", "native"): (2e-7, "the features are exact in float32"),
    ("contrastive_loss", "float64", "triton"): (1e-12, "as the reference"),
    ("contrastive_loss", "float32", "triton"): (
        2e-6, "as the reference; the sums are float32, the cosine of them float64"),
    ("contrastive_loss", "bfloat16", "triton"): (2e-6, "the features are exact in float32"),
    ("contrastive_loss", "float16", "triton"): (2e-6, "the features are exact in float32"),
    ("contrastive_loss_gradient", "float32", "native"): (
        1e-6, "of the image's largest: three terms that cancel, factors rounded once"),
    ("contrastive_loss_gradient", "bfloat16", "native"): (
        2**-8, "of the image's largest: one rounding"),
    ("contrastive_loss_gradient", "float64", "triton"): (
        1e-12, "of the image's largest: sums of some thousands in another order"),
    ("contrastive_loss_gradient", "float32", "triton"): (
        2e-6, "of the image's largest: three terms that cancel, sums in another order"),
    ("contrastive_loss_gradient", "bfloat16", "triton"): (
        2**-7, "of the image's largest: one rounding, which Triton's interpreter makes down"),
    ("features", "float32", "published"): (
        1e-4, "relative to the largest: convolutions sum in an order that differs by machine"),
    ("scores", "float32", "published"): (
        1e-5, "relative: the cosine divides the features' common error away"),
    ("training_loss", "float64", "published"): (
        1e-7, "Adam amplifies rounding from step to step, still 1e-12 after four"),
    ("engine_map", "float32", "engine"): (
        1e-4, "of the map's range: the same sums in another order, BatchNorm folded"),
    ("engine_score", "float32", "engine"): (1e-4, "relative: as the map"),
    ("engine_neighbours", "float32", "engine"): (
        1e-6, "relative: a batch of another size may sum in another order"),
    ("engine_neighbours", "float32", "torch_cuda"): (
        1e-5, "as above; cuDNN may choose another algorithm, and a maximum averages nothing out"),
}


def allowed(operation: str, dtype: object, backend: str = "reference") -> float:
    """The tolerance of a row; dtype may be a torch or numpy dtype or its name."""
    return TOLERANCES[operation, str(dtype).removeprefix("torch."), backend][0]
