/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A writer of JSON for --json: no tree, no allocation. Strings are escaped, and made valid UTF-8
 * since file names may hold any bytes. One thread.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "json-out.h"

void json_out_init(struct json_out *out, FILE *file)
{
	*out = (struct json_out){ .file = file };
}

/* Bytes of the UTF-8 sequence at `c`; 0 if it is none (overlong, surrogate, cut short). */
static unsigned sequence_bytes(const unsigned char *c)
{
	unsigned n = c[0] < 0x80 ? 1 : c[0] < 0xc2 ? 0 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 :
		     c[0] < 0xf5 ? 4 : 0;

	for (unsigned i = 1; i < n; i++)
		if ((c[i] & 0xc0) != 0x80)
			return 0;
	if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
	    (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f))
		return 0;
	return n;
}

static void put_string(FILE *file, const char *value)
{
	const unsigned char *c = (const unsigned char *)value;

	fputc('"', file);
	while (*c) {
		unsigned n = sequence_bytes(c);

		if (n == 0)
			fputs("\\ufffd", file);
		else if (*c == '"' || *c == '\\')
			fprintf(file, "\\%c", *c);
		else if (*c < 0x20 || *c == 0x7f)
			fprintf(file, "\\u%04x", *c);
		else
			fwrite(c, 1, n, file);
		c += n ? n : 1;
	}
	fputc('"', file);
}

static void put_key(struct json_out *out, const char *key)
{
	if (out->used[out->depth])
		fputc(',', out->file);
	if (out->depth)
		fprintf(out->file, "\n%*s", (int)out->depth * 2, "");
	out->used[out->depth] = true;
	if (key) {
		put_string(out->file, key);
		fputs(": ", out->file);
	}
}

static void put_open(struct json_out *out, const char *key, char bracket)
{
	assert(out->depth < JSON_OUT_MAX_DEPTH);
	put_key(out, key);
	fputc(bracket, out->file);
	out->used[++out->depth] = false;
}

void json_out_object(struct json_out *out, const char *key)
{
	put_open(out, key, '{');
}

void json_out_array(struct json_out *out, const char *key)
{
	put_open(out, key, '[');
}

void json_out_end(struct json_out *out, char bracket)
{
	bool used = out->used[out->depth];

	assert(out->depth > 0);
	out->depth--;
	if (used)
		fprintf(out->file, "\n%*s", (int)out->depth * 2, "");
	fputc(bracket, out->file);
	if (out->depth == 0)
		fputc('\n', out->file);
}

void json_out_string(struct json_out *out, const char *key, const char *value)
{
	put_key(out, key);
	put_string(out->file, value);
}

void json_out_u64(struct json_out *out, const char *key, uint64_t value)
{
	put_key(out, key);
	fprintf(out->file, "%llu", (unsigned long long)value);
}

void json_out_i64(struct json_out *out, const char *key, int64_t value)
{
	put_key(out, key);
	fprintf(out->file, "%lld", (long long)value);
}

void json_out_double(struct json_out *out, const char *key, double value)
{
	put_key(out, key);
	if (isfinite(value))
		fprintf(out->file, "%.6g", value);
	else
		fputs("null", out->file);
}

void json_out_bool(struct json_out *out, const char *key, bool value)
{
	put_key(out, key);
	fputs(value ? "true" : "false", out->file);
}
