-- stand down: a poller that stands by ends; answers whether another one leads. ARGV: nonce
redis.call('HDEL', key('standbys'), ARGV[1])
local nonce = redis.call('HGET', key('leader'), 'nonce')
return nonce and nonce ~= '' and nonce ~= ARGV[1] and 1 or 0
