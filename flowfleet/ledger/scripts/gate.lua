-- gate: {open, server process, number of claims}
return {gate_open() and 1 or 0, process(), redis.call('SCARD', key('claims'))}
