-- tombs: all tombstones
return redis.call('HVALS', key('tombs'))
