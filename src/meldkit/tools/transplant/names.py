"""What transplantation offers, by name; imports nothing, as command lines are read before anything else."""

#: How rows of tokens that a model lacks are made: functions of `approximate`. The first is the usual one.
METHODS = (
    *("omp", "common_interpolation", "subword", "mean", "zero", "randn"),
    *("john_hewitt", "landmark_pca", "stb", "mp_rope"),
)
WEIGHT_SCHEMES = ("distance_proportional", "barycentric", "least_squares")
SUBWORD_METHODS = ("mean", "sum", "weighted_mean", "first_last")
#: Where tokens may match otherwise than exactly.
PLACES = ("no", "embed", "lm_head", "yes")
