// Fetches a thin event by its id, as the receiver of its notification does, and prints what it says.

import assert from 'node:assert/strict';

import { connect } from './connect.mjs';
import { usage } from './input.mjs';

const [baseUrl, key, id] = process.argv.slice(2);
if (!baseUrl || !key || !id) usage('thin.mjs BASE_URL KEY EVENT_ID');

const event = await connect(baseUrl, key).v2.core.events.retrieve(id);
assert.equal(event.object, 'v2.core.event');
const { error_count, error_types } = event.data.reason;
console.log(JSON.stringify({ type: event.type, error_count, error_types }));
