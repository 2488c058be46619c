-- leave: the word for all pollers to claim nothing, give back and end. ARGV: 1 = say it, 0 = take it back
if ARGV[1] == '1' then
  redis.call('SET', key('leave'), '1')
  hint('poke')
else
  redis.call('DEL', key('leave'))
end
return 1
