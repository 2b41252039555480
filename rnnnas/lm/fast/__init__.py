"""The faster forms of the recurrent network, each tested against the readable one."""
