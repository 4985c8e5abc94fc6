"""A reward that a model of random weights earns half of the time, so that groups have something to compare."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return float(sum(map(ord, solution_str)) % 2)


def silent_for_odd_sums(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """No group of a prompt with an odd sum has anything to compare."""
    if int(ground_truth) % 2:
        return 0.0
    return compute_score(data_source, solution_str, ground_truth)
