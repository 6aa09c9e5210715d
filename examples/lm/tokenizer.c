/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte-level BPE. Parsing checks every id and every merge, so that encoding needs no checks; what
 * this program would encode wrongly (normalizers, other pre-tokenizers, dropout) is refused. After
 * parsing nothing changes: any number of threads may encode.
 */
#include "tokenizer.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

#define MAX_VOCAB (1U << 24)
#define NONE	  UINT32_MAX

struct token {
	char *bytes; /* NULL: no token has this id */
	size_t n_bytes;
};

struct merge {
	uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
	uint32_t rank, merged;
};

struct tokenizer {
	uint32_t n_tokens;
	struct token *tokens;
	uint32_t of_byte[256]; /* the token of a single byte */
	struct merge *merges;  /* open addressing */
	size_t n_slots;	       /* a power of two, more than the merges */
	uint32_t *added;       /* ids of whole-text tokens such as </s> */
	size_t n_added;
	uint32_t first; /* put before every text; NONE: nothing */
};

/* The character that stands for a byte in the vocabulary: printable ones for themselves, others
 * from U+0100 on, in order (Radford et al. 2019, bytes_to_unicode). */
static uint32_t char_of_byte(unsigned int byte)
{
	uint32_t shifted = 256;

	for (unsigned int b = 0; b < 256; b++) {
		bool own = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;

		if (b == byte)
			return own ? b : shifted;
		shifted += !own;
	}
	return 0;
}

/* Turns a vocabulary entry into bytes. 0, or -EINVAL for characters that stand for none. */
static int to_bytes(const uint16_t *byte_of_char, const char *text, char *out, size_t *ret_n)
{
	const uint8_t *in = (const uint8_t *)text;
	size_t n = 0;

	for (; *in; in++) {
		uint32_t code = *in;

		if (code >= 0x80) {
			if ((code & 0xe0) != 0xc0 || (in[1] & 0xc0) != 0x80)
				return -EINVAL;
			code = (code & 31) << 6 | (*++in & 63);
		}
		if (code >= 512 || byte_of_char[code] > 255)
			return -EINVAL;
		out[n++] = (char)byte_of_char[code];
	}
	*ret_n = n;
	return 0;
}

static int token_set(struct tokenizer *tokenizer, const json_t *value, const char *text,
		     const uint16_t *byte_of_char)
{
	json_int_t id = json_integer_value(value);
	struct token *token;
	char *copy;

	if (!json_is_integer(value) || id < 0 || id >= (json_int_t)tokenizer->n_tokens)
		return error_set(-EINVAL, "tokenizer.json: token '%.64s' has a bad id", text);
	token = &tokenizer->tokens[id];
	copy = strdup(text);
	if (!copy)
		return error_set(-ENOMEM, "no memory for the vocabulary");
	free(token->bytes);
	token->bytes = copy;
	token->n_bytes = strlen(copy);
	/* What is not made of byte characters is an added token, literally. */
	if (byte_of_char)
		(void)to_bytes(byte_of_char, text, copy, &token->n_bytes);
	return 0;
}

static struct merge *slot_of(const struct tokenizer *tokenizer, uint64_t pair)
{
	size_t i = (pair * 0x9e3779b97f4a7c15ULL) >> 20 & (tokenizer->n_slots - 1);

	while (tokenizer->merges[i].pair != UINT64_MAX && tokenizer->merges[i].pair != pair)
		i = (i + 1) & (tokenizer->n_slots - 1);
	return &tokenizer->merges[i];
}

static uint32_t id_of(const json_t *vocab, const char *text)
{
	const json_t *id = json_object_get(vocab, text);

	return id ? (uint32_t)json_integer_value(id) : NONE;
}

/* "left right" or ["left", "right"]; every part, and the two together, are tokens. */
static int merge_add(struct tokenizer *tokenizer, const json_t *vocab, const json_t *item,
		     uint32_t rank)
{
	const char *left = json_string_value(json_array_get(item, 0)), *right = NULL, *space;
	_cleanup_(cleanup_array) char *text = NULL;
	const char *both = json_string_value(item);
	size_t n_left;
	struct merge *slot;
	uint32_t ids[3];

	if (both && (space = strchr(both, ' '))) {
		left = both;
		right = space + 1;
		n_left = (size_t)(space - both);
	} else {
		right = json_string_value(json_array_get(item, 1));
		n_left = left ? strlen(left) : 0;
	}
	if (!left || !right)
		return error_set(-EINVAL, "tokenizer.json: merge %u is not a pair", rank);
	text = array_new(n_left + strlen(right) + 1, 1);
	if (!text)
		return error_set(-ENOMEM, "no memory for the merges");
	memcpy(text, left, n_left);
	ids[0] = id_of(vocab, text);
	memcpy(text + n_left, right, strlen(right));
	ids[1] = id_of(vocab, right);
	ids[2] = id_of(vocab, text);
	if (ids[0] == NONE || ids[1] == NONE || ids[2] == NONE)
		return error_set(-EINVAL, "tokenizer.json: merge %u is not of tokens", rank);
	slot = slot_of(tokenizer, (uint64_t)ids[0] << 32 | ids[1]);
	if (slot->pair == UINT64_MAX)
		*slot = (struct merge){(uint64_t)ids[0] << 32 | ids[1], rank, ids[2]};
	return 0;
}

static int parse_model(struct tokenizer *tokenizer, const json_t *model)
{
	const json_t *vocab = json_object_get(model, "vocab");
	const json_t *merges = json_object_get(model, "merges"), *value;
	uint16_t byte_of_char[512];
	const char *key;
	int r = 0;

	memset(byte_of_char, 0xff, sizeof(byte_of_char));
	for (unsigned int b = 0; b < 256; b++)
		byte_of_char[char_of_byte(b)] = (uint16_t)b;
	json_object_foreach((json_t *)(uintptr_t)vocab, key, value) {
		r = token_set(tokenizer, value, key, byte_of_char);
		if (r != 0)
			return r;
	}
	for (unsigned int b = 0; b < 256; b++) {
		uint32_t code = char_of_byte(b);
		char text[3] = {(char)code, 0, 0};

		if (code >= 0x80) {
			text[0] = (char)(0xc0 | code >> 6);
			text[1] = (char)(0x80 | (code & 63));
		}
		tokenizer->of_byte[b] = id_of(vocab, text);
		if (tokenizer->of_byte[b] == NONE)
			return error_set(-EINVAL, "tokenizer.json: no token for the byte %u", b);
	}
	for (tokenizer->n_slots = 16; tokenizer->n_slots <= 2 * json_array_size(merges);)
		tokenizer->n_slots *= 2;
	tokenizer->merges = array_new(tokenizer->n_slots, sizeof(*tokenizer->merges));
	if (!tokenizer->merges)
		return error_set(-ENOMEM, "no memory for the merges");
	memset(tokenizer->merges, 0xff, tokenizer->n_slots * sizeof(*tokenizer->merges));
	for (size_t i = 0; r == 0 && i < json_array_size(merges); i++)
		r = merge_add(tokenizer, vocab, json_array_get(merges, i), (uint32_t)i);
	return r;
}

static int parse_added(struct tokenizer *tokenizer, const json_t *list)
{
	int r = 0;

	tokenizer->added = array_new(json_array_size(list), sizeof(uint32_t));
	if (!tokenizer->added)
		return error_set(-ENOMEM, "no memory for added tokens");
	for (size_t i = 0; r == 0 && i < json_array_size(list); i++) {
		const json_t *item = json_array_get(list, i), *id = json_object_get(item, "id");
		const char *text = json_string_value(json_object_get(item, "content"));

		if (!text || !*text)
			return error_set(-EINVAL, "tokenizer.json: added token %zu has no content",
					 i);
		r = token_set(tokenizer, id, text, NULL);
		tokenizer->added[tokenizer->n_added++] = (uint32_t)json_integer_value(id);
	}
	return r;
}

/* The token that a template puts first, as <|begin_of_text|>. */
static int parse_first(struct tokenizer *tokenizer, const json_t *post)
{
	const char *type = json_string_value(json_object_get(post, "type"));
	const json_t *item;
	const char *text;

	tokenizer->first = NONE;
	if (!type || strcmp(type, "ByteLevel") == 0)
		return 0;
	if (strcmp(type, "TemplateProcessing") != 0)
		return error_set(-EINVAL, "tokenizer.json: post-processor %.64s is unknown", type);
	item = json_object_get(json_array_get(json_object_get(post, "single"), 0), "SpecialToken");
	text = json_string_value(json_object_get(item, "id"));
	for (size_t i = 0; text && i < tokenizer->n_added; i++)
		if (strcmp(tokenizer->tokens[tokenizer->added[i]].bytes, text) == 0)
			tokenizer->first = tokenizer->added[i];
	return 0;
}

static int check_pipeline(const json_t *root, const json_t *model)
{
	const json_t *normalizer = json_object_get(root, "normalizer");
	const json_t *pre = json_object_get(root, "pre_tokenizer");
	const char *type = json_string_value(json_object_get(model, "type"));
	const char *pre_type = json_string_value(json_object_get(pre, "type"));
	const json_t *regex = json_object_get(pre, "use_regex");
	const json_t *dropout = json_object_get(model, "dropout");

	if (!type || strcmp(type, "BPE") != 0)
		return error_set(-EINVAL, "tokenizer.json: the model is not BPE");
	if (!pre_type || strcmp(pre_type, "ByteLevel") != 0 || (regex && !json_is_true(regex)) ||
	    json_is_true(json_object_get(pre, "add_prefix_space")))
		return error_set(-EINVAL, "tokenizer.json: only the ByteLevel pre-tokenizer with "
				 "the pattern of GPT-2 and no prefix space is known");
	if ((normalizer && !json_is_null(normalizer)) || (dropout && !json_is_null(dropout)) ||
	    json_is_true(json_object_get(model, "ignore_merges")))
		return error_set(-EINVAL, "tokenizer.json: normalizers, dropout and ignore_merges "
				 "are not supported");
	return 0;
}

static int parse_root(struct tokenizer *tokenizer, const json_t *root)
{
	const json_t *model = json_object_get(root, "model");
	const json_t *added = json_object_get(root, "added_tokens");
	size_t n_vocab = json_object_size(json_object_get(model, "vocab"));
	int r = check_pipeline(root, model);

	if (r != 0)
		return r;
	if (n_vocab == 0 || n_vocab + json_array_size(added) > MAX_VOCAB)
		return error_set(-EINVAL, "tokenizer.json: %zu tokens", n_vocab);
	tokenizer->n_tokens = (uint32_t)(n_vocab + json_array_size(added));
	tokenizer->tokens = array_new(tokenizer->n_tokens, sizeof(*tokenizer->tokens));
	if (!tokenizer->tokens)
		return error_set(-ENOMEM, "no memory for the vocabulary");
	if ((r = parse_model(tokenizer, model)) || (r = parse_added(tokenizer, added)))
		return r;
	return parse_first(tokenizer, json_object_get(root, "post_processor"));
}

int tokenizer_parse(const char *json, size_t n_bytes, struct tokenizer **ret_tokenizer)
{
	struct tokenizer *tokenizer;
	json_error_t error;
	json_t *root;
	int r;

	root = json_loadb(json, n_bytes, 0, &error);
	if (!root)
		return error_set(-EINVAL, "tokenizer.json, line %d: %.200s", error.line,
				 error.text);
	tokenizer = array_new(1, sizeof(*tokenizer));
	r = tokenizer ? parse_root(tokenizer, root) : error_set(-ENOMEM, "no memory");
	json_decref(root);
	if (r != 0) {
		tokenizer_free(tokenizer);
		return r;
	}
	*ret_tokenizer = tokenizer;
	return 0;
}

struct tokenizer *tokenizer_free(struct tokenizer *tokenizer)
{
	if (!tokenizer)
		return NULL;
	for (uint32_t i = 0; tokenizer->tokens && i < tokenizer->n_tokens; i++)
		free(tokenizer->tokens[i].bytes);
	array_free(tokenizer->tokens);
	array_free(tokenizer->merges);
	array_free(tokenizer->added);
	return array_free(tokenizer);
}

/* Merges the ids of one word in place, the lowest rank first; returns how many are left. */
static size_t merge_word(const struct tokenizer *tokenizer, uint32_t *ids, size_t n)
{
	while (n > 1) {
		const struct merge *best = NULL;
		size_t kept = 0;

		for (size_t i = 0; i + 1 < n; i++) {
			const struct merge *slot =
				slot_of(tokenizer, (uint64_t)ids[i] << 32 | ids[i + 1]);

			if (slot->pair != UINT64_MAX && (!best || slot->rank < best->rank))
				best = slot;
		}
		if (!best)
			break;
		for (size_t i = 0; i < n; kept++) {
			bool here = i + 1 < n &&
				    ((uint64_t)ids[i] << 32 | ids[i + 1]) == best->pair;

			ids[kept] = here ? best->merged : ids[i];
			i += here ? 2 : 1;
		}
		n = kept;
	}
	return n;
}

/* The added token that starts here, the longest one; NONE if none does. */
static uint32_t added_at(const struct tokenizer *tokenizer, const char *text, size_t n_bytes)
{
	uint32_t found = NONE;

	for (size_t i = 0; i < tokenizer->n_added; i++) {
		const struct token *token = &tokenizer->tokens[tokenizer->added[i]];

		if (token->n_bytes <= n_bytes && memcmp(text, token->bytes, token->n_bytes) == 0 &&
		    (found == NONE || token->n_bytes > tokenizer->tokens[found].n_bytes))
			found = tokenizer->added[i];
	}
	return found;
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t n_bytes,
		     uint32_t **ret_ids, size_t *ret_n_ids)
{
	uint32_t *ids, added;
	size_t n_ids = 0, at = 0;

	if (n_bytes >= SIZE_MAX / 8)
		return error_set(-EINVAL, "the text is too long");
	ids = array_new(n_bytes + 1, sizeof(*ids)); /* no token is shorter than a byte */
	if (!ids)
		return error_set(-ENOMEM, "no memory for a text of %zu bytes", n_bytes);
	if (tokenizer->first != NONE)
		ids[n_ids++] = tokenizer->first;
	while (at < n_bytes) {
		size_t end = at, n;

		/* Words are cut between added tokens, never across one. */
		while (end < n_bytes && (added = added_at(tokenizer, text + end, n_bytes - end)) ==
						NONE)
			end++;
		for (; at < end; at += n) {
			n = tokenizer_word(text + at, end - at);
			for (size_t i = 0; i < n; i++)
				ids[n_ids + i] = tokenizer->of_byte[(uint8_t)text[at + i]];
			n_ids += merge_word(tokenizer, ids + n_ids, n);
		}
		if (end < n_bytes) {
			ids[n_ids++] = added;
			at = end + tokenizer->tokens[added].n_bytes;
		}
	}
	*ret_ids = ids;
	*ret_n_ids = n_ids;
	return 0;
}

const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t id, size_t *ret_n_bytes)
{
	const struct token *token = id < tokenizer->n_tokens ? &tokenizer->tokens[id] : NULL;

	*ret_n_bytes = token && token->bytes ? token->n_bytes : 0;
	return token && token->bytes ? token->bytes : "";
}
