"""Who may import whom: the rules that test_house.py keeps."""

from __future__ import annotations

# What a module may import of the package, besides `errors`, `types` and the version. The first
# pattern that fits a module counts. A new module needs a line here: what it may know of others is
# a decision. (`architecture: who may import whom`.)
MAY_IMPORT: dict[str, list[str]] = {
    "errors": [], "types": [], "nas.genotype": [],
    "nas.space": ["nas.genotype"],
    "nas.relax.base": ["nas.space"],
    "nas.relax": [],
    "nas.relax.choices": ["nas.relax.base", "nas.space"],
    "nas.relax.sampling": ["nas.relax.base", "nas.genotype", "nas.space"],
    "nas.relax.*": [
        "nas.relax.base", "nas.relax.choices", "nas.relax.sampling", "nas.space",
    ],
    "nas.chain": [],
    "nas.evolution": ["nas.genotype", "nas.space"],
    "nas.cost": ["nas.genotype", "nas.relax.base", "nas.space"],
    "nas.curvature": ["nas.architect", "nas.relax.base"],
    "nas.perturbation": ["nas.genotype", "nas.relax.base"],
    "nas.policy": ["nas.architect", "nas.relax.base", "nas.relax.sampling"],
    "nas.methods": ["nas.relax.base", "nas.genotype"],
    "nas.architect": ["nas.relax.base", "optim", "ranks"],
    "lm.*": ["lm.*", "nas.genotype", "nas.space", "nas.relax.base", "ranks"],
    "cnn.*": ["cnn.*", "nas.chain", "nas.genotype", "nas.relax.base", "nas.space"],
    "data.*": ["data.*"],
    "optim": [],
    "settings": [],
    "columns": [],
    "layout": ["cnn.dense_genes", "columns", "nas.genotype"],
    "draw": ["cnn.dense_genes", "layout", "nas.genotype"],
    "raster": ["layout", "nas.genotype"],
    "content": [],
    "progress": [], "signals": [], "published": ["config"],
    "ranks": [],
    "shared": ["ranks", "run"],
    "files": ["content"],
    "lock": ["files"],
    "board": ["files"],
    "run": ["board", "files", "lock"],
    "loop": ["content", "progress", "ranks", "shared", "signals"],
    "stages": ["nas.space"],
    "stopping": [],
    "programs": ["lm.pool", "ranks"],
    "steps": ["nas.relax.base", "optim", "programs", "ranks"],
    "search_config": ["nas.cost", "nas.methods", "nas.relax.base", "optim", "settings"],
    "config": [
        "cnn.zoo", "data.streams", "image_config", "lm.*", "nas.cost", "nas.evolution",
        "nas.genotype", "nas.methods", "nas.perturbation", "nas.space", "optim", "search_config",
        "settings", "stages", "stopping",
    ],
    "image_config": [
        "cnn.dense*", "cnn.model", "cnn.space", "data.augment", "data.batches", "nas.cost",
        "nas.genotype", "nas.methods", "optim", "search_config", "settings", "stages",
    ],
    "tasks.base": [
        "cnn.dense", "cnn.model", "data.streams", "lm.model", "loop", "nas.genotype",
        "nas.relax.base", "steps",
    ],
    "tasks.text": [
        "config", "data.store", "data.streams", "derive", "lm.model", "loop", "nas.*", "ranks",
        "tasks.base",
    ],
    "tasks.images": [
        "cnn.*", "data.*", "image_config", "loop", "nas.*", "steps", "tasks.base",
    ],
    "tasks.pick": ["config", "data.*", "image_config", "ranks", "tasks.*"],
    "classify": [
        "cnn.dense", "cnn.model", "config", "data.*", "files", "image_config", "steps",
        "tasks.images",
    ],
    "adapt": [
        "config", "data.store", "data.streams", "files", "lm.cache", "lm.dynamic", "lm.model",
        "lm.scores", "progress", "steps",
    ],
    "evaluate": [
        "adapt", "classify", "config", "data.*", "files", "lm.model", "nas.genotype", "steps",
    ],
    "derive": [
        "config", "data.store", "data.streams", "loop", "nas.*", "progress", "run", "shared",
        "signals", "steps",
    ],
    "perturb": [
        "config", "data.store", "data.streams", "derive", "lm.model", "loop", "nas.genotype",
        "nas.perturbation", "nas.relax.base", "progress", "ranks", "shared", "signals", "steps",
    ],
    "watch": [
        "config", "data.store", "data.streams", "derive", "lm.model", "nas.curvature",
        "nas.genotype", "nas.relax.base", "ranks", "steps", "stopping",
    ],
    "blackbox": [
        "config", "data.*", "derive", "lm.model", "loop", "nas.*", "optim", "programs", "ranks",
        "shared", "steps",
    ],
    "latency": [
        "config", "files", "lm.fused", "lm.model", "nas.cost", "nas.genotype", "nas.space", "ranks",
    ],
    "layer_latency": ["cnn.ops", "data.images", "files", "image_config", "latency"],
    "cell_latency": [
        "cnn.cell", "cnn.ends", "cnn.model", "cnn.ops", "cnn.space", "data.images", "image_config",
        "layer_latency", "nas.cost", "nas.genotype", "nas.relax.base", "nas.space", "settings",
    ],
    "dense_latency": [
        "cnn.dense*", "cnn.ops", "data.images", "image_config", "layer_latency", "nas.chain",
        "nas.cost", "nas.genotype", "nas.relax.base",
    ],
    "supernet": [
        "config", "data.corpus", "data.streams", "derive", "lm.model", "loop", "nas.*", "optim",
        "perturb", "programs", "ranks", "raster", "run", "shared", "stages", "steps", "tasks.*",
        "watch",
    ],
    "search": [
        "blackbox", "cell_latency", "config", "data.*", "dense_latency", "derive", "files",
        "image_config", "latency", "loop", "nas.*", "ranks", "run", "shared", "supernet", "tasks.*",
    ],
    "train": [
        "config", "data.*", "derive", "evaluate", "files", "loop", "nas.genotype", "optim",
        "programs", "published", "ranks", "raster", "run", "shared", "steps", "tasks.*",
    ],
    "bench": [
        "config", "data.streams", "lm.loss", "lm.model", "lm.products", "nas.*", "optim",
        "programs", "steps",
    ],
    "bench_images": [
        "bench", "cnn.model", "cnn.space", "config", "nas.architect", "nas.relax.base", "optim",
        "steps",
    ],
    "demo": ["config", "data.corpus", "nas.genotype", "nas.space", "search", "train"],
    "study.ranking": [],
    "study.plan": ["config", "data.streams", "nas.genotype", "nas.methods", "nas.space"],
    "study.record": ["config", "files", "run", "study.plan"],
    "study.jobs": ["files"],
    "study.cluster": ["files", "study.jobs"],
    "study.report": ["board", "config", "files", "study.plan", "study.ranking", "study.record"],
    "study.estimate": [
        "blackbox", "config", "data.corpus", "data.streams", "loop", "nas.genotype",
        "nas.relax.base", "programs", "search", "steps", "study.jobs", "study.plan", "supernet",
        "train",
    ],
    "study.execute": ["data.corpus", "files", "lock", "signals", "study.*"],
    "cli": ["cli.*"],
    "cli.*": [
        "cli.*", "bench*", "blackbox", "board", "cell_latency", "cnn.dense_genes", "cnn.zoo",
        "config", "data.corpus", "demo", "dense_latency", "draw", "evaluate", "files",
        "image_config", "latency", "layer_latency", "lm.device", "lm.kernels", "nas.genotype",
        "nas.methods",
        "nas.space", "ranks", "search", "study.*", "train",
    ],
    "__main__": ["cli"],
}  # fmt: skip
EVERYONE = ["errors", "types", ""]

# Libraries, besides Python's own, that a part may use. Parts that are not named may use any.
LIBRARIES: dict[str, set[str]] = {
    "errors": set(), "nas.genotype": set(), "nas.space": set(), "nas.evolution": set(),
    "columns": set(), "layout": set(), "draw": set(), "cnn.space": set(), "cnn.zoo": set(),
    "cnn.dense_genes": set(), "cnn.dense_space": set(),
    "cnn.*": {"torch"}, "nas.*": {"torch"}, "lm.triton_*": {"triton"}, "lm.*": {"torch"},
    "optim": {"torch"}, "types": {"torch"}, "stages": set(), "stopping": set(), "steps": {"torch"},
    "programs": {"torch"}, "cli": {"click"}, "cli.*": {"click", "torch"},
}  # fmt: skip
