#!/usr/bin/env python3
"""Writes a GGUF file's matrices in another type: the same model, but for what that rounds.

usage: dequantise.py IN.gguf OUT.gguf TYPE [NOISE]      (needs `pip install gguf`)

TYPE: bf16, f16, q8_0, q5_1, q5_0, q4_1 or q4_0. What lies in the file as F32 stays. NOISE (0.05, say) moves every
weight at random by about that share of its matrix's RMS: a model of its own, whose weights do not lie on
the grid of IN's type, so that to round them again loses what it would lose elsewhere.
"""
import sys

import gguf
import numpy

source, target, wanted, *noise = sys.argv[1:]
random = numpy.random.default_rng(1)
kind = gguf.GGMLQuantizationType[wanted.upper()]
reader = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
        continue
    of_array = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, field.contents(), field.types[0], of_array)
for tensor in reader.tensors:
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(tensor.name, tensor.data)
    else:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        for share in map(float, noise):
            rms = numpy.sqrt(numpy.mean(values**2))
            values += (share * rms * random.standard_normal(values.shape)).astype(values.dtype)
        writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
