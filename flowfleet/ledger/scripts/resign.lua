-- resign: leaves the lead; the term stays, so that the next one is higher. ARGV: term
if term_stands(ARGV[1]) then
  redis.call('HSET', key('leader'), 'nonce', '', 'name', '', 'host', '')
  hint('poke')
end
return 1
