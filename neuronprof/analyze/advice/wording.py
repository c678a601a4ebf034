"""How a change is said: for each by framework, '' where the trace does not tell which."""

WORDING: dict[str, dict[str, str]] = {
    "host sync": {
        "torch": "Keep the value on the device: collect .item() and prints every hundred steps, after the step.",
        "jax": "Keep the value on the device: call float() or print every hundred steps, and let dispatch run ahead.",
        "": "Keep the value on the device, and read it every hundred steps.",
    },
    "input": {
        "torch": "Copy the next batch while this step runs: DataLoader(pin_memory=True) and .to(device, non_blocking=True) one step ahead.",
        "jax": "Put the next batch on the device while this step runs: jax.device_put one step ahead.",
        "": "Copy the next batch while this step runs.",
    },
    "bf16": {
        "torch": "Run forward and loss under torch.autocast(device, dtype=torch.bfloat16), or keep the weights in bf16.",
        "jax": "Cast weights and batch to jnp.bfloat16 inside the loss, and keep fp32 for the optimizer.",
        "": "Run the products in bf16.",
    },
    "even work": {
        "": "Give the ranks even batches: bucket samples by length, pack sequences, balance the routing of experts.",
    },
    "zero": {
        "torch": "Share the optimizer out: --zero 1, or ZeroRedundancyOptimizer or fully_shard in a script that distributes itself.",
        "jax": "Shard the optimizer's state over the data axis (a NamedSharding for it), so that each device updates its part.",
        "": "Share the optimizer's state out among the replicas (ZeRO-1).",
    },
    "gradient sync": {
        "torch": "Reduce gradients in buckets while backward runs: DistributedDataParallel, or a smaller --bucket.",
        "jax": "Let XLA reduce each layer's gradients in backward: scan over layers, and its latency-hiding scheduler.",
        "": "Reduce gradients in buckets while backward runs.",
    },
    "buckets": {
        "torch": "Send them together: DistributedDataParallel(bucket_cap_mb=25), a larger --bucket, or one flattened tensor.",
        "jax": "Send them together: psum a whole tree of arrays in one call.",
        "": "Send them together, in buckets of 25 MiB.",
    },
    "accumulate": {
        "torch": "Reduce once, after the last micro-batch: model.no_sync() around the others, or set_requires_gradient_sync(False).",
        "jax": "Reduce once, after the last micro-batch: psum the accumulated gradients, outside the scan.",
        "": "Reduce once, after the last micro-batch.",
    },
    "launches": {
        "torch": "Launch the step as one: leave out --eager, torch.compile(model), or a captured graph.",
        "jax": "Launch the step as one: put all of it under one jax.jit.",
        "": "Compile the step, so that the host launches it as one.",
    },
    "fill": {
        "": "Make the sides of these products multiples of the array's: fewer, wider heads (128), padded vocabularies, a smaller --tp.",
    },
    "attention": {
        "torch": "Let attention be one operator: torch.nn.functional.scaled_dot_product_attention(q, k, v), with its mask and dropout.",
        "": "Compute attention in a fused kernel that keeps its scores in SBUF.",
    },
    "layout": {
        "torch": "Leave out .contiguous() and .clone() where a view serves, and choose the layout in which the next product reads it.",
        "jax": "Choose the layout in which the next product reads it: einsum rather than transpose and matmul.",
        "": "Choose the layout in which the next product reads it, so that nothing is copied.",
    },
    "recompute": {
        "torch": "Leave out --recompute, or torch.utils.checkpoint around the blocks, at least around some of them.",
        "jax": "Leave out jax.checkpoint, or give it a policy that keeps what products make.",
        "": "Keep the activations, at least of some layers.",
    },
    "less at a time": {
        "torch": "Work on less at a time: more --microbatches, gradient accumulation over smaller batches, a larger --tp, fused operators.",
        "jax": "Work on less at a time: scan over smaller batches and add up their gradients, or shard the wide tensors over more devices.",
        "": "Work on less at a time: smaller micro-batches, wide tensors divided over more ranks, fused operators.",
    },
    "load once": {
        "torch": "Load it once: one product with the weights side by side (a fused q, k and v), a fused loss; or smaller micro-batches.",
        "": "Load it once: one product with the weights side by side, a fused loss; or smaller micro-batches.",
    },
    "smaller products": {
        "": "Divide these products over more ranks (tensor or sequence parallel), or cut them so that one operand fits a quarter of SBUF.",
    },
    "larger pieces": {
        "": "Move larger pieces: contiguous tensors instead of slices of rows, a larger batch, small tensors joined into one.",
    },
    "prefetch": {
        "torch": "Gather a block's weights while the one before it runs: --prefetch 1, or fully_shard's set_modules_to_forward_prefetch.",
        "jax": "Gather a layer's weights while the one before it runs: XLA's latency-hiding scheduler.",
        "": "Gather a layer's weights while the one before it runs.",
    },
    "tensor parallel": {
        "torch": "Keep tensor parallelism inside a host or UltraServer: a smaller --tp, and the ranks that are left as --dp or --pp.",
        "": "Keep tensor parallelism inside a host or UltraServer, and use the ranks that are left for data or pipeline parallelism.",
    },
    "micro-batches": {
        "torch": "Cut the batch into more micro-batches: --microbatches {count}; or shorten the bubble: --vp 2 or --schedule zero-bubble.",
        "": "Cut the batch into more micro-batches: {count}; or shorten the bubble by virtual stages.",
    },
    "stages": {
        "torch": "Cut the stages by cost: leave out --even-stages, or move layers to the stages that wait; heads and vocabularies count.",
        "": "Cut the stages by cost: move layers to the stages that wait; heads and vocabularies count.",
    },
}
