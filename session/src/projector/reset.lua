-- Empties a set of projections and sets it to the beginning of a log, unless it already belongs to that log.
if redis.call('HGET', KEYS[1], 'log') == ARGV[1] then return end
redis.call('DEL', unpack(KEYS))
redis.call('HSET', KEYS[1], 'log', ARGV[1], 'seq', 0)
