"""``unet-engine bench``: what runs fastest on this machine, measured.

space    which configurations there are, and what each is worth on a volume      pure
search   which of them to measure, and for how long                              pure
child    a process that holds one configuration and times it
meter    all those processes, measured in turn
peak     what the machine can do at best: matrix products, copies
whole    ``unet-engine run`` as a user would start it, watched from outside
sweep    one model on one volume: search, run the best, compare
report   table and JSON        page    HTML
"""
