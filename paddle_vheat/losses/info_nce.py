"""InfoNCE over labelled samples, with its gradient written out.

Paper: arXiv 2101.11939, equation 3; van den Oord et al., arXiv 1807.03748.
"""

from __future__ import annotations

from typing import Any

from paddle_vheat._paddle import F, paddle

Tensor = Any

# The logarithm of nothing: exp of it is 0, and differences of it with finite numbers stay finite.
LOG_ZERO = -1e30


def _loss_and_gradient(
    features: Tensor, labels: Tensor, valid: Tensor, temperature: float, base: float, bank: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and its derivative by the features, in one go.

    For anchor i with similarities s (over the temperature), positives P and negatives N, with
    z = log sum_{n in N} exp(s_n):

        -log( exp(s_p) / (exp(s_p) + exp(z)) ) = softplus(z - s_p),

    which is finite for any similarities and 0 without negatives. The bank's part is computed class by class, so
    that the similarities to all of it (anchors x classes x slots) never exist at once; automatic differentiation
    would keep them all, and would meet a bank that has been written to since.
    """
    scaled = features / temperature
    similar = paddle.matmul(scaled, features, transpose_y=True)
    # Rows of samples that are not valid mean nothing below; they get a weight of 0.
    labels = paddle.where(valid, labels, paddle.full_like(labels, -1))
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    no_negative = paddle.logical_or(same, paddle.logical_not(valid).unsqueeze(0))
    without = paddle.where(no_negative, paddle.full_like(similar, LOG_ZERO), similar)
    log_negatives = paddle.logsumexp(without, axis=1, keepdim=True)
    positive = same.astype("float32") - paddle.eye(labels.shape[0], dtype="float32")
    positives = positive.sum(axis=1, keepdim=True)
    classes = bank.read(labels, valid) if bank is not None else []
    of_class = []  # log-sum-exp of the similarities to a class, and their mean weighted by exp
    for rows in classes:
        to_class = paddle.matmul(scaled, rows.queue, transpose_y=True)
        total = paddle.logsumexp(to_class, axis=1, keepdim=True)
        mean = paddle.matmul(paddle.exp(to_class - total), rows.queue)
        other = rows.label != labels.unsqueeze(1)
        total = paddle.where(other, total, paddle.full_like(total, LOG_ZERO))
        of_class.append((total, mean))
        positives += paddle.logical_not(other).astype("float32") * rows.queue.shape[0]
    if of_class:
        log_negatives = paddle.logsumexp(
            paddle.concat([log_negatives, *(total for total, _ in of_class)], axis=1), axis=1, keepdim=True
        )

    # An anchor without a positive has no term, and is left out of the mean.
    counted = paddle.logical_and(valid.unsqueeze(1), positives > 0).astype("float32")
    weight = counted / paddle.clip(positives, min=1.0) / paddle.clip(counted.sum(), min=1.0)
    weight = weight * (temperature / base)

    mask = positive * weight
    gap = log_negatives - similar
    loss = (F.softplus(gap) * mask).sum()
    pull = F.sigmoid(gap) * mask  # minus the derivative by the positives' similarities
    push = pull.sum(axis=1, keepdim=True)  # the derivative by the log-sum-exp of the negatives
    gradient = paddle.zeros_like(features)
    for rows in classes:
        if rows.anchors is None:
            continue
        to_class = paddle.matmul(paddle.gather(scaled, rows.anchors), rows.queue, transpose_y=True)
        gap = paddle.gather(log_negatives, rows.anchors) - to_class
        own = paddle.gather(weight, rows.anchors)
        loss += (F.softplus(gap) * own).sum()
        own = F.sigmoid(gap) * own
        zeros = paddle.zeros_like(features)
        gradient -= paddle.scatter(zeros, rows.anchors, paddle.matmul(own, rows.queue), overwrite=True)
        push += paddle.scatter(zeros[:, :1], rows.anchors, own.sum(axis=1, keepdim=True), overwrite=True)
    for total, mean in of_class:
        gradient += push * paddle.exp(total - log_negatives) * mean
    # Paddle's exp of LOG_ZERO is not 0 but 1e-38, and products with such numbers are slow.
    share = paddle.exp(without - log_negatives)
    by_similarity = push * paddle.where(no_negative, paddle.zeros_like(share), share) - pull
    # Both sides of the similarities of a batch are trained.
    gradient += paddle.matmul(by_similarity + by_similarity.t(), features)
    return loss, gradient / temperature


def info_nce(
    features: Tensor,
    labels: Tensor,
    valid: Tensor | None = None,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    bank: Any = None,
) -> Tensor:
    """Supervised InfoNCE: the mean over anchors i of

        -(temperature / base_temperature) * mean_{p in P} log( exp(i.p/T) / (exp(i.p/T) + sum_{n in N} exp(i.n/T)) )

    where P are the other samples of its class and N those of other classes. Anchors without a positive are
    left out; if none has one, the loss is 0 (and has a gradient, of 0). In float32, finite for any similarities.

    Args:
        features: float32 (S, D); every sample is an anchor. They are used as given, usually of length 1.
        labels: int64 (S,).
        valid: bool (S,), samples that take part; None for all.
        temperature: T.
        base_temperature: scales the loss.
        bank: a :class:`paddle_vheat.losses.MemoryBank` whose entries join P and N.

    Returns:
        float32 scalar.
    """
    if valid is None:
        valid = paddle.ones(labels.shape, dtype="bool")
    with paddle.no_grad():
        value, gradient = _loss_and_gradient(features.detach(), labels, valid, temperature, base_temperature, bank)
    # The difference is 0, and its gradient is the one computed. (A PyLayer would do too, but for Paddle's crashing
    # in a second backward pass over one.)
    return value + ((features - features.detach()) * gradient).sum()
