/* SPDX-License-Identifier: Apache-2.0 */
/* Writes one JSON document, member by member. `key` is NULL inside arrays and at the top. */
#ifndef DCMEM_JSON_OUT_H
#define DCMEM_JSON_OUT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_OUT_MAX_DEPTH 8

struct json_out {
	FILE *file;
	unsigned depth;
	bool used[JSON_OUT_MAX_DEPTH + 1]; /* something was written at this depth */
};

void json_out_init(struct json_out *out, FILE *file);
void json_out_object(struct json_out *out, const char *key);
void json_out_array(struct json_out *out, const char *key);
/* Ends the innermost object with '}' or array with ']'; a newline after the outermost. */
void json_out_end(struct json_out *out, char bracket);
/* Bytes that are not UTF-8 come out as U+FFFD. */
void json_out_string(struct json_out *out, const char *key, const char *value);
void json_out_u64(struct json_out *out, const char *key, uint64_t value);
void json_out_i64(struct json_out *out, const char *key, int64_t value);
void json_out_double(struct json_out *out, const char *key, double value);
void json_out_bool(struct json_out *out, const char *key, bool value);

#endif
