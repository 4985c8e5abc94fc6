"""A reward that a model of random weights earns half of the time, so that groups have something to compare."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return float(sum(map(ord, solution_str)) % 2)
