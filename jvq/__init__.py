"""jvq: quantisation of Vision Transformers in JAX, from 8 bits down to 1.

The seam is :func:`jvq.float_dot` and its relatives; a recipe names quantisers by address, ``resolve`` makes it a plan,
``calibrate`` finds the state, ``freeze`` packs the weights, ``integer_dot`` multiplies integers, ``jvq.export`` saves;
``show`` prints any of these. ``quantize`` does all of it in one call.
"""

from jvq.core.calibrate import calibrate
from jvq.core.dot import Dot, float_dot, packed_dot, perturbed, quantized, recording
from jvq.core.freeze import freeze
from jvq.core.packed import Packed
from jvq.core.quantizer import Codes, Quantizer, State
from jvq.core.recipe import Operand, Plan, Recipe, resolve, sites
from jvq.integer import integer_dot, prepared
from jvq.models import Model, build
from jvq.models.weights import Checkpoint, open_weights
from jvq.ptq import quantize
from jvq.quantizers import Dynamic, Grouped, Learned, Signs, Steps, Ternary, Uniform
from jvq.showing import show

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "Codes",
    "Dot",
    "Dynamic",
    "Grouped",
    "Learned",
    "Model",
    "Operand",
    "Packed",
    "Plan",
    "Quantizer",
    "Recipe",
    "Signs",
    "State",
    "Steps",
    "Ternary",
    "Uniform",
    "build",
    "calibrate",
    "float_dot",
    "freeze",
    "integer_dot",
    "open_weights",
    "packed_dot",
    "perturbed",
    "prepared",
    "quantize",
    "quantized",
    "recording",
    "resolve",
    "show",
    "sites",
]
