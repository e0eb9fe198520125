"""Calls whose results' axes, feature dim and values are recorded from RETURNN: `axes_of_results.json`.

To record anew: `RETURNN's python tests/frontend/axis_calls.py > tests/frontend/axes_of_results.json`.
"""

import json

LAYOUTS = ("btf", "tbf", "ftb", "bft")
CALLS = {
    "add": "x + bias",
    "times": "per_seq * x",
    "outer": "per_frame + per_seq",
    "compare": "rf.compare(x, '>', per_seq)",
    "matmul": "rf.matmul(x, weight, reduce=f)",
    "matmul from the left": "rf.matmul(weight, x, reduce=f)",
    "scores": "rf.matmul(x, other, reduce=f)",
    **{
        f"{mode} over {axes}": f"rf.reduce(x, mode={mode!r}, axis=[{axes}])"
        for mode in ("sum", "mean", "logsumexp")
        for axes in ("f", "t", "b", "b, t")
    },
    "max over t": "rf.reduce_max(x, axis=t)",
    "argmax over t": "rf.reduce_argmax(x, axis=t)",
    "any over t": "rf.reduce_any(x > 0, axis=t)",
    "moments": "rf.moments(x, axis=t)",
    "softmax": "rf.softmax(x, axis=t)",
    "cumsum": "rf.cumsum(x, spatial_dim=t)",
    "gather": "rf.gather(x, indices=0, axis=t)",
    "gather per sequence": "rf.gather(x, indices=t.dyn_size_ext - 1, axis=t)",
    "gather frames": "rf.gather(x, indices=make([b, s], 'int32'), axis=t, clip_to_valid=True)",
    "scatter": "rf.scatter(x, indices=classes, indices_dim=t, out_dim=g)",
    "scatter all": "rf.scatter(x, indices=classes, indices_dim=[b, t], out_dim=g)",
    "one_hot": "rf.one_hot(classes)",
    "label_smoothing": "rf.label_smoothing(classes, 0.1)",
    "cross_entropy": "rf.cross_entropy(estimated=make([b, t, g]), target=classes, axis=g, estimated_type='logits')",
    "cross_entropy of probabilities": (
        "rf.cross_entropy(estimated=rf.softmax(make([t, g, b]), axis=g), target=classes, axis=g,"
        " estimated_type='probs')"
    ),
    "shift": "rf.shift_right(x, axis=t, pad_value=0.0)",
    "reverse": "rf.reverse_sequence(x, axis=t)",
    "slice": "rf.slice(x, axis=t, start=1)[0]",
    "pad": "rf.pad(x, axes=[t], padding=[(1, 2)], value=7.0)[0]",
    "concat features": "rf.concat((x, f), (make([b, t, k]), k))[0]",
    "concat frames": "rf.concat((x, t), (other, s))[0]",
    "stack": "rf.stack([x, y], out_dim=Dim(2, name='two'))[0]",
    "merge": "rf.merge_dims(x, dims=[t, f])[0]",
    "merge batch": "rf.merge_dims(x, dims=[t, b])[0]",
    "expand": "rf.expand_dim(x, k)",
    "expand twice": "rf.expand_dims(x, [k, g])",
    "expand by frames": "rf.expand_dim(x, s)",
    "add an axis": "x.copy_add_dim_by_tag(k, unbroadcast=True)",
    "align": "x.copy_compatible_to(y)",
    "top_k": "rf.top_k(x, axis=f, k=1)[0]",
    "sort": "rf.sort(x, axis=f, descending=True)[0]",
    "window": "rf.window(x, spatial_dim=t, window_dim=Dim(3, name='window'))[0]",
    "window valid": "rf.window(x, spatial_dim=t, window_dim=Dim(2, name='window'), padding='valid')[0]",
    "window with stride": "rf.window(x, spatial_dim=t, window_dim=Dim(3, name='window'), stride=2)[0]",
    "pool": "rf.pool1d(x, mode='max', pool_size=2, in_spatial_dim=t, padding='same')[0]",
    "masked_select": "rf.masked_select(x, mask=rf.reduce_any(x > 0.3, axis=f), dims=[t])[0]",
    "pack_padded": "rf.pack_padded(x, dims=[b, t])[0]",
    "where": "rf.where(per_seq > 0, x, bias)",
    "where of condition": "rf.where(x > 0, per_seq, 0.0)",
    "mask": "rf.sequence_mask(t)",
    "mask of batch and time": "rf.sequence_mask([b, t])",
    "masked ones": "rf.where(rf.sequence_mask(t), 1.0, 0.0)",
    "range": "rf.range_over_dim_strided(t, stride=2)[0]",
    "attention": "rf.dot_attention(x, other, make([b, s, g]), key_dim=f, axis=s, att_dropout=0.0)",
    "stft": "rf.stft(make([b, t]), in_spatial_dim=t, frame_step=1, frame_length=2, fft_length=4)[0]",
    "layer norm": "rf.LayerNorm(f)(x)",
    "batch norm": "rf.BatchNorm(f)(x)",
    "lstm": "rf.LSTM(f, g)(x, state=rf.LSTM(f, g).default_initial_state(batch_dims=[b]), spatial_dim=t)[0]",
    "conv": "rf.Conv1d(f, g, 3, padding='same')(x, in_spatial_dim=t)[0]",
    "positions": "rf.sinusoidal_positional_encoding(spatial_dim=t, feat_dim=k)",
}
RANDOM = {"lstm", "conv"}
"""Only the axes are compared."""


def results(layout):
    """Call to (names of the axes, dtype, feature dim, sparse dim, shape, weighted sum of the real values)."""
    import returnn.frontend as rf
    import torch
    from returnn.tensor import Dim

    rf.select_backend_torch()
    generator = torch.Generator().manual_seed(LAYOUTS.index(layout))
    b = Dim(3, name="b")

    def with_lengths(name, lengths):
        return Dim(rf.convert_to_tensor(torch.tensor(lengths, dtype=torch.int32), dims=[b]), name=name)

    t, s = with_lengths("t", [3, 2, 4]), with_lengths("s", [1, 2, 2])
    f, g, k = Dim(2, name="f"), Dim(5, name="g"), Dim(4, name="k")
    named = {b: "b", t: "t", s: "s", f: "f", g: "g", k: "k"}

    def make(dims, dtype="float32", sparse=None, feature=None):
        shape = [dim.get_dim_value() for dim in dims]
        if dtype == "float32":
            raw = torch.randn(shape, generator=generator)
        else:
            raw = torch.randint(0, 5, shape, generator=generator, dtype=getattr(torch, dtype))
        return rf.convert_to_tensor(raw, dims=dims, sparse_dim=sparse, feature_dim=feature)

    dims = [{"b": b, "t": t, "f": f}[letter] for letter in layout]
    env = {"rf": rf, "Dim": Dim, "b": b, "t": t, "s": s, "f": f, "g": g, "k": k, "make": make}
    env |= {"x": make(dims, feature=f), "y": make(dims), "weight": make([f, g]), "other": make([b, s, f])}
    env |= {"bias": make([f]), "per_seq": make([b]), "per_frame": make([t])}
    env["classes"] = make([dim for dim in dims if dim is not f], "int32", sparse=g)

    def name(dim):
        return (
            None if dim is None else named.get(dim) or f"({max(dim.get_size_tensor().raw_tensor.flatten().tolist())})"
        )

    def describe(call, out):
        if isinstance(out, tuple):
            return [describe(call, part) for part in out]
        raw = out.raw_tensor.detach()
        values = torch.view_as_real(raw).sum(-1).double() if raw.is_complex() else raw.double()
        for dim in out.dims:
            if dim.need_masking() and b in out.dims:
                mask = dim.get_mask(dim_order=out.dims)
                values = torch.where(mask.copy_compatible_to_dims(out.dims).raw_tensor, values, 0.0)
        weights = torch.arange(1, values.numel() + 1).double().sqrt()
        total = None if call in RANDOM else round(float((values.flatten() * weights).sum()), 3)
        axes = [name(dim) for dim in out.dims]
        return [axes, out.dtype, name(out.feature_dim), name(out.sparse_dim), list(raw.shape), total]

    return {call: describe(call, eval(text, env)) for call, text in CALLS.items()}


if __name__ == "__main__":
    print(json.dumps({layout: results(layout) for layout in LAYOUTS}).replace('], "', '],\n"'))
