-- compatible from 0013
-- Of the request that admitted a settlement, where that was traced: `00-<trace id>-<span id>-<flags>`. (W3C Trace Context)

alter table settlement add column traceparent text collate "C";
