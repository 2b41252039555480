"""The floors of the house and the libraries of each room: the rules that test_house.py keeps."""

from __future__ import annotations

# Rooms by floor, from the ground up. A room imports rooms of lower floors, and itself: nothing
# imports upwards, and rooms of one floor do not know each other. A new room needs its place here.
FLOORS: list[set[str]] = [
    {"errors", "types", "home", "processes"},
    {"ranks"},
    {"optim", "distributed", "plugins"},
    {"nas", "data", "runs"},
    {"lm", "cnn"},
    {"config", "draw"},
    {"latency"},
    {"engine"},
    {"evaluation", "searching"},
    {"training"},
    {"bench", "studies"},
    {"exporting", "reporting"},
    {"tabular"},
    {"door"},
    {"cli"},
    {"__main__"},
]

# Three rooms inside a room. What is in front may be imported by what stands behind, not the other
# way round; `nas.relax` and `lm.fast` are used by their room and use its foundations.
INNER = {"lm.fast", "nas.relax", "cnn.dense"}

# Libraries, besides Python's own, that a room or a module may use. What is not named may use any.
LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "plugins.*": set(),
    "nas.genotype": set(),
    "nas.space": set(),
    "nas.stages": set(),
    "nas.strategies": set(),
    "nas.zoo": set(),
    "nas.structure": {"numpy"},
    "nas.early_stopping": set(),
    "draw.layout": set(),
    "draw.text_svg_dot": set(),
    "cnn.space": set(),
    "cnn.zoo": set(),
    "cnn.dense.genotype": set(),
    "cnn.dense.space": set(),
    "nas.*": {"torch"},
    "cnn.*": {"torch"},
    "lm.fast.triton_support": {"torch"},
    "lm.fast.triton_*": {"triton"},
    "lm.*": {"torch"},
    "optim": {"torch"},
    "types": {"torch"},
    "engine.*": {"torch", "numpy"},
    "cli": {"click"},
}

# Modules that may ask whether a run is on text or on images; all others ask their task.
ASK_THE_MEDIUM = {"engine.pick_task", "engine.text_task", "engine.image_task"}
