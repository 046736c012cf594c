#!/usr/bin/env python3
"""Writes a GGUF file under the name of another architecture of llama.cpp: internlm2, for one, computes
what llama does, so that a llama file becomes a real model that only llama.cpp's engine knows.

usage: rename_architecture.py IN.gguf OUT.gguf ARCHITECTURE      (needs `pip install gguf`)
"""
import sys

import gguf

source, target, architecture = sys.argv[1:]
reader = gguf.GGUFReader(source)
old = reader.fields["general.architecture"].contents()
writer = gguf.GGUFWriter(target, architecture)
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
        continue
    kind = field.types[0]
    element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    if name.startswith(old + "."):
        name = architecture + name.removeprefix(old)
    writer.add_key_value(name, field.contents(), kind, element)
for tensor in reader.tensors:
    writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if tensor.name == "token_embd.weight" and not any(t.name == "output.weight" for t in reader.tensors):
        writer.add_tensor("output.weight", tensor.data, raw_dtype=tensor.tensor_type)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
