-- Writes changes to the projections, together with the watermark, or nothing.
-- Returns where the projections stand afterwards; -1 when they are of another log.
local mark, timelines, closed = KEYS[1], KEYS[7], KEYS[8]
local log, from, to, time, behind = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
if redis.call('HGET', mark, 'log') ~= log then return -1 end
local at = tonumber(redis.call('HGET', mark, 'seq'))
-- Another projector was here: the caller goes on from where that one left it.
if at ~= from then return at end

-- Each is a command, the place of its key, and its arguments.
for _, change in ipairs(cjson.decode(ARGV[6])) do
  redis.call(change[1], KEYS[change[2]], unpack(change[3]))
end

local function forget(sessions)
  if #sessions == 0 then return end
  redis.call('ZREM', closed, unpack(sessions))
  redis.call('HDEL', timelines, unpack(sessions))
end
-- Closed sessions are looked back on for so long, and no more than so many.
if ARGV[7] ~= '' then forget(redis.call('ZRANGEBYSCORE', closed, '-inf', '(' .. ARGV[7])) end
forget(redis.call('ZRANGE', closed, 0, -1 - tonumber(ARGV[8])))

redis.call('HSET', mark, 'seq', ARGV[3])
if time ~= '' then redis.call('HSET', mark, 'time', time) end
if behind ~= '' then
  local now = redis.call('TIME')
  redis.call('HSET', mark, 'behind', behind, 'seen', now[1] .. string.format('%03d', math.floor(now[2] / 1000)))
end
return to
