"""One call of `train`: the loop, where its state comes from, signals, the processes of a cluster.

The only folder that meets core, record and account. Imports no command, no plan, no sweep.
"""
