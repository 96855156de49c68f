-- Sets the projections to the beginning of a log, unless they are of that log already.
if redis.call('HGET', KEYS[1], 'log') == ARGV[1] then return end
redis.call('DEL', unpack(KEYS))
redis.call('HSET', KEYS[1], 'log', ARGV[1], 'seq', 0)
