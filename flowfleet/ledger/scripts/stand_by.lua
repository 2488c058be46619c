-- stand by: the counter of a poller that would take the lead over. ARGV: nonce
return redis.call('HINCRBY', key('standbys'), ARGV[1], 1)
