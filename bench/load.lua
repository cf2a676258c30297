-- What wrk asks, and its result as one line of JSON. Its arguments, after "--":
--   read FILE     GET the paths in a file (one to a line), one after the other, again and again
--   create TAG    POST users whose addresses begin with a tag and a number, so that none repeats
--   change FILE   PATCH the users in a file (lines of id and version), one after the other
--   mixed TOOK TAG CHANGE GET LIST [FIND]
--                 nine reads to one write from each connection. With a thread for each connection,
--                 a thread sees one answer at a time, and can take the time of each kind: in lines
--                 of kind and microseconds, in a file for each thread, whose name begins with TOOK.

local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long seconds, nanoseconds; } moment;
  int clock_gettime(int clock, moment *now);
]])

-- Of 20 requests. Every connection shuffles a deck of its own.
local deck = { get = 11, list = 5, find = 2, create = 1, change = 1 }

local threads = {}
local ask, number = nil, 0
changed = 0  -- global: done() asks each thread for it
local cards, card, kind, began = {}, 0, nil, 0

-- A script has a state for each thread, and one for setup() and done().
function setup(thread)
  threads[#threads + 1] = thread
  thread:set("place", #threads)
end

local function lines(file)
  local all = {}
  for line in io.lines(file) do
    all[#all + 1] = line
  end
  return all
end

local function read(file)
  local asked, at = {}, place * 1009
  for _, path in ipairs(lines(file)) do
    asked[#asked + 1] = wrk.format("GET", path)
  end
  return function()
    at = at + 1
    return asked[at % #asked + 1]
  end
end

local function create(tag)
  local headers = { ["Content-Type"] = "application/json" }
  return function()
    number = number + 1
    -- No digits in the name: a search for digits finds as many users as before.
    local user = '{"name": "New", "email": "' .. tag .. "-" .. place .. "-" .. number .. '@example.com"}'
    return wrk.format("POST", "/users/", headers, user)
  end
end

-- Of n threads, each changes every nth user, whose versions nothing else changes.
local function change(file, n)
  local ids, versions = {}, {}
  for at, line in ipairs(lines(file)) do
    if at % n == place % n then
      ids[#ids + 1], versions[#versions + 1] = line:match("(%d+) (%d+)")
    end
  end
  return function()
    local at, lap = changed % #ids + 1, math.floor(changed / #ids)
    changed = changed + 1
    local version = versions[at] + lap
    local headers = { ["Content-Type"] = "application/json", ["If-Match"] = '"' .. version .. '"' }
    local letter = string.char(97 + version % 26)
    local user = '{"name": "User ' .. ids[at] .. " " .. letter .. '"}'
    return wrk.format("PATCH", "/users/" .. ids[at], headers, user)
  end
end

local function now()
  local moment = ffi.new("moment")
  ffi.C.clock_gettime(1, moment)  -- CLOCK_MONOTONIC
  return tonumber(moment.seconds) * 1e6 + tonumber(moment.nanoseconds) / 1e3
end

local function deal()
  cards, card = {}, 0
  for name, many in pairs(deck) do
    for _ = 1, many do
      table.insert(cards, math.random(#cards + 1), name)
    end
  end
end

local function mixed(took, tag, change_file, get, list, find)
  took = assert(io.open(took .. place, "w"))
  took:setvbuf("full")  -- it is flushed when wrk ends
  local kinds = { get = read(get), list = read(list) }
  kinds.create, kinds.change = create(tag), change(change_file, 32)
  if find then
    kinds.find = read(find)
  else
    deck.get, deck.find = deck.get + deck.find, 0
  end
  math.randomseed(place)
  response = function()
    took:write(kind, " ", math.floor(now() - began), "\n")
  end
  return function()
    if card == #cards then
      deal()
    end
    card = card + 1
    kind = cards[card]
    local asked = kinds[kind]()
    began = now()
    return asked
  end
end

function init(args)
  local ways = { read = read, create = create, change = change, mixed = mixed }
  if args[1] == "change" then
    args[3] = 1
  end
  ask = ways[args[1]](unpack(args, 2))
end

-- wrk makes its first call only to look at a request, and does not send it: it is no change.
function request()
  if place == 1 and not seen then
    seen = true
    return wrk.format("GET", "/users/1")
  end
  return ask()
end

function done(summary, latency)
  local changed = 0
  for _, thread in ipairs(threads) do
    changed = math.max(changed, thread:get("changed"))
  end
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"rps": %.1f, "p50": %.3f, "p99": %.3f, "failed": %d, "changed": %d}\n',
    summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    failed, changed
  ))
end
