"""What the parts of a flow cost, in gradients of one example: counted from what they evaluate.

A gradient is a pass forward and one back of twice the work: three passes. A tangent takes two passes' work forward
(a product with the weights and one with their tangent) and four back, so that a Hessian product beside a gradient that
is there already is 2 gradients; along directions in the weights alone, forward, it is 2/3. The gradient of a second
derivative along two directions takes seven products forward and twelve back for every layer: 6 gradients.
"""

GRADIENT = 1.0
PRODUCT = 2.0
TANGENT = 2.0 / 3.0
TURNING = 6.0


def settled(modes: int) -> float:
    """Of `follow_modes`: a gradient and its products with the block.

    Parameters
    ----------
    modes : int
        k.

    Returns
    -------
    float
        Gradients, for every example.
    """
    return GRADIENT + modes * PRODUCT


def noise(modes: int) -> float:
    """Of `per_example_modes`.

    Parameters
    ----------
    modes : int
        k.

    Returns
    -------
    float
        Gradients, for every example.
    """
    return GRADIENT / 3 + modes * TANGENT


def averaged(modes: int) -> float:
    """Of `averaged_path.averaged`.

    Parameters
    ----------
    modes : int
        k.

    Returns
    -------
    float
        Gradients, for every example.
    """
    return GRADIENT * (1 + 2 * modes)


def outside(draws: int, order: int, averaged: int, *, held: bool = False) -> float:
    """Of a measurement outside the carried modes, but for its sums of gradients, one for every draw.

    Parameters
    ----------
    draws, order, averaged : int
        Of the fluctuation; products for each; draws about which, on either side, the Hessian is averaged that drives
        them.
    held : bool
        Whether it is measured what holds the draws beyond that Hessian: a product with it for each of them.

    Returns
    -------
    float
        Gradients, for every example.
    """
    points = 2 * averaged
    products = order * (1 + points) + (points if held else 0)
    return GRADIENT * (1 + points) + draws * (products * PRODUCT + 2 * GRADIENT)


def reading(modes: int, size: int, pairs: int, block: int | None = None) -> float:
    """Of `iterates_sharpness`, and of `sharpness_of_iterates`.

    Parameters
    ----------
    modes, size, pairs : int
        Of the reduced map; weights; opposite points at which the curvature is read.
    block : int, optional
        Columns from which each reading starts; `modes` if left out.

    Returns
    -------
    float
        Gradients, for every example.
    """
    turned = modes * (modes + 1) // 2
    beside = min(2 * turned, size - modes)
    made = turned * (TURNING + PRODUCT) + beside * PRODUCT + 3 * GRADIENT
    return made + 2 * pairs * beside_kick(modes if block is None else block)


def beside_kick(block: int) -> float:
    """Of `averaged_path.sharpness_beside`, at one point.

    Parameters
    ----------
    block : int
        Columns from which it starts.

    Returns
    -------
    float
        Gradients, for every example.
    """
    return 3 * settled(block)
