"""Programs made at random, judged by evaluators that share no code with gdregs."""
