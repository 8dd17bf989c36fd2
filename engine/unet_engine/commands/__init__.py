"""The command line, and what people see: run, plan, info, doctor, demo, bench."""
