"""A small interpreter of ML Programs as coremltools reads them from disk: numpy, over the operators that our packages use.

Values have the types that the program declares. float16 operands are widened, the operator is computed in float32, and its result
is rounded to the declared type: what a machine does that accumulates in float32. It is not Core ML, which may fuse and round
elsewhere; it shows that a package says what it should.
"""

import numpy as np
from scipy.special import erf


class State:
    """The states of a package, by name, as a program leaves them."""

    def __init__(self, function):
        self.values = {}
        for name, var in function.inputs.items():
            if is_state(var):
                wrapped = var.sym_type.wrapped_type()
                self.values[name] = np.zeros([int(n) for n in wrapped.get_shape()], np.float16)


def is_state(var):
    return hasattr(var.sym_type, "wrapped_type")


def run(function, inputs, state=None):
    """The outputs of a function by name. `inputs` are arrays by name; `state` is changed in place."""
    values = {}
    for name, var in function.inputs.items():
        if is_state(var):
            continue
        wanted = tuple(int(n) for n in var.shape)
        given = np.asarray(inputs[name])
        if given.shape != wanted:
            raise ValueError(f"`{name}` has shape {given.shape}, the program wants {wanted}")
        values[var] = given.astype(nptype(var))
    unknown = set(inputs) - {name for name in function.inputs}
    if unknown:
        raise ValueError(f"the program has no inputs {sorted(unknown)}")
    last_use = {}
    for index, op in enumerate(function.operations):
        for var in operands(op):
            last_use[var] = index
    for var in function.outputs:
        last_use[var] = len(function.operations)

    constants = {}

    def value(var):
        if isinstance(var, (list, tuple)):
            return [value(one) for one in var]
        if var is None:
            return None
        if var in values:
            return values[var]
        if var.val is not None:
            return var.val
        if var.op is not None and var.op.op_type.startswith("constexpr_"):
            return constants.setdefault(var, var.op.materialized_val_inference())
        raise ValueError(f"`{var.name}` is not computed")

    for index, op in enumerate(function.operations):
        kind = op.op_type
        if kind == "const" or kind.startswith("constexpr_"):
            continue
        if kind == "read_state":
            results = [state.values[op.inputs["input"].name]]
        elif kind == "coreml_update_state":
            results = [value(op.inputs["value"])]
            state.values[op.inputs["state"].name] = results[0]
        else:
            if kind not in OPERATORS:
                raise ValueError(f"`{op.name}`: the interpreter has no {kind}")
            results = OPERATORS[kind]({name: value(var) for name, var in op.inputs.items()})
            if not isinstance(results, list):
                results = [results]
        for var, result in zip(op.outputs, results):
            wanted = tuple(int(n) for n in var.shape)
            result = np.asarray(result).astype(nptype(var), copy=False)
            if result.shape != wanted:
                raise ValueError(f"`{var.name}` has shape {result.shape}, the program says {wanted}")
            values[var] = result
        for var in operands(op):
            if last_use.get(var) == index:
                values.pop(var, None)
                constants.pop(var, None)
    return {var.name: values[var] for var in function.outputs}


def operands(op):
    for var in op.inputs.values():
        if isinstance(var, (list, tuple)):
            yield from var
        elif var is not None:
            yield var


def nptype(var):
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(var.dtype)


def wide(x):
    """float16 as float32, everything else as it is."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def unary(function):
    return lambda a: function(wide(a["x"]))


def binary(function):
    return lambda a: function(wide(a["x"]), wide(a["y"]))


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def gelu(a):
    if a["mode"] != "EXACT":
        raise ValueError(f"the interpreter has no GELU of mode {a['mode']}")
    x = wide(a["x"])
    return 0.5 * x * (1 + erf(x * np.float32(np.sqrt(0.5))))


def softmax(x, axis):
    x = x - x.max(axis=axis, keepdims=True)
    x = np.exp(x)
    return x / x.sum(axis=axis, keepdims=True)


def linear(a):
    product = wide(a["x"]) @ wide(a["weight"]).T
    return product if a.get("bias") is None else product + wide(a["bias"])


def matmul(a):
    x, y = wide(a["x"]), wide(a["y"])
    x = np.swapaxes(x, -1, -2) if a["transpose_x"] else x
    y = np.swapaxes(y, -1, -2) if a["transpose_y"] else y
    return x @ y


def attention(a):
    query, key, value = (wide(a[name]) for name in ("query", "key", "value"))
    scores = query @ np.swapaxes(key, -1, -2) / np.float32(np.sqrt(query.shape[-1]))
    if a.get("attn_mask") is not None:
        scores = scores + wide(a["attn_mask"])
    return softmax(scores, -1) @ value


def conv(a):
    if a["pad_type"] != "custom" or list(a["dilations"]) != [1, 1]:
        raise ValueError("the interpreter has only convolutions with given padding and no dilation")
    x, weight = wide(a["x"]), wide(a["weight"])
    (top, bottom, left, right), (down, across), groups = a["pad"], a["strides"], int(a["groups"])
    outputs, per_group, height, width = weight.shape
    x = np.pad(x[0], ((0, 0), (top, bottom), (left, right)))
    rows, columns = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // across + 1
    out = np.zeros((groups, outputs // groups, rows, columns), np.float32)
    grouped = x.reshape(groups, per_group, *x.shape[1:])
    weight = weight.reshape(groups, outputs // groups, per_group, height, width)
    for i in range(height):
        for j in range(width):
            part = grouped[
                :, :, i : i + down * (rows - 1) + 1 : down, j : j + across * (columns - 1) + 1 : across
            ]
            tap = weight[..., i, j]
            if per_group == 1:
                for output in range(outputs // groups):
                    out[:, output] += part[:, 0] * tap[:, output, 0][:, None, None]
            else:
                flat = np.ascontiguousarray(part).reshape(groups, per_group, rows * columns)
                out += (tap @ flat).reshape(out.shape)
    out = out.reshape(1, outputs, rows, columns)
    return out if a.get("bias") is None else out + wide(a["bias"])[:, None, None]


def layer_norm(a):
    x, axes = wide(a["x"]), tuple(int(n) for n in a["axes"])
    mean = x.mean(axis=axes, keepdims=True)
    x = x - mean
    x = x / np.sqrt((x * x).mean(axis=axes, keepdims=True) + np.float32(a["epsilon"]))
    return x * wide(a["gamma"]) + wide(a["beta"])


def slice_by_index(a):
    return a["x"][tuple(slice(int(b), int(e)) for b, e in zip(a["begin"], a["end"]))]


def slice_update(a):
    out = np.array(a["x"])
    place = tuple(slice(int(b), int(e)) for b, e in zip(a["begin"], a["end"]))
    if out[place].shape != a["update"].shape:
        raise ValueError(f"an update of shape {a['update'].shape} into {place} of {out.shape}")
    out[place] = a["update"]
    return out


def split(a):
    places = np.cumsum(a["split_sizes"])[:-1]
    return list(np.split(a["x"], places, axis=int(a["axis"])))


CASTS = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32, "bool": np.bool_}

OPERATORS = {
    "add": binary(np.add),
    "sub": binary(np.subtract),
    "mul": binary(np.multiply),
    "real_div": binary(np.divide),
    "sqrt": unary(np.sqrt),
    "cos": unary(np.cos),
    "sin": unary(np.sin),
    "sigmoid": unary(sigmoid),
    "relu": unary(lambda x: np.maximum(x, 0)),
    "gelu": gelu,
    "softmax": lambda a: softmax(wide(a["x"]), int(a["axis"])),
    "matmul": matmul,
    "linear": linear,
    "conv": conv,
    "reduce_mean": lambda a: wide(a["x"]).mean(
        axis=tuple(int(n) for n in a["axes"]), keepdims=bool(a["keep_dims"])
    ),
    "layer_norm": layer_norm,
    "cast": lambda a: np.asarray(a["x"]).astype(CASTS[a["dtype"]]),
    "concat": lambda a: np.concatenate([np.atleast_1d(v) for v in a["values"]], axis=int(a["axis"])),
    "gather": lambda a: np.take(a["x"], a["indices"], axis=int(a["axis"])),
    "slice_by_index": slice_by_index,
    "slice_update": slice_update,
    "split": split,
    "reshape": lambda a: np.reshape(a["x"], [int(n) for n in a["shape"]]),
    "transpose": lambda a: np.transpose(a["x"], [int(n) for n in a["perm"]]),
    "expand_dims": lambda a: np.expand_dims(a["x"], tuple(int(n) for n in a["axes"])),
    "squeeze": lambda a: np.squeeze(a["x"], tuple(int(n) for n in a["axes"])),
    "less_equal": binary(np.less_equal),
    "logical_and": binary(np.logical_and),
    "select": lambda a: np.where(a["cond"], a["a"], a["b"]),
    "scaled_dot_product_attention": attention,
}
