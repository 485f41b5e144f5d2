"""Readers of the official formats of the workloads: class folders, TFRecord, Chars74k, plain text.

Each opens what is there, in an order that depends on names alone, and reads an example when it is asked for one, so
that memory holds no data set. What is broken is refused in one sentence that names the file and the place in it.
"""
