#!/usr/bin/env python3
"""Writes a GGUF file without some of its layers: a second model that nobody tuned on.

usage: drop_layers.py IN.gguf OUT.gguf LAYER...      (needs `pip install gguf`)
"""
import re
import sys

import gguf

source, target, *dropped = sys.argv[1:]
dropped = {int(layer) for layer in dropped}
reader = gguf.GGUFReader(source)
architecture = reader.fields["general.architecture"].contents()
writer = gguf.GGUFWriter(target, architecture)
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
        continue
    value = field.contents()
    if name == f"{architecture}.block_count":
        value -= len(dropped)
    kind = field.types[0]
    writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
for tensor in reader.tensors:
    name = tensor.name
    if match := re.match(r"blk\.(\d+)(\..*)", name):
        layer = int(match[1])
        if layer in dropped:
            continue
        name = f"blk.{layer - sum(d < layer for d in dropped)}{match[2]}"
    writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
