"""Drawing in compiled code: what a causal network does for a pixel, recorded, and run by a loop in C.

recorder  vectors that write down what is done to them, as a program
loop.c    runs a program for the pixels of a row
loop      compiles that where there is a C compiler, and draws with it
"""
