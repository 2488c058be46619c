-- stand by: the counter of a poller that would take the lead over, and the ledger ids that it remembers (joined by commas).
-- ARGV: nonce, ids
remember(ARGV[2])
return redis.call('HINCRBY', key('standbys'), ARGV[1], 1)
