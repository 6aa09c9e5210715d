/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-level BPE of tokenizer.json: text to ids and back. */
#ifndef LM_TOKENIZER_H
#define LM_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* 0, -ENOMEM, or -EINVAL with a sentence about what is damaged or unknown. */
int tokenizer_parse(const char *json, size_t n_bytes, struct tokenizer **ret_tokenizer);
struct tokenizer *tokenizer_free(struct tokenizer *tokenizer);
static inline void cleanup_tokenizer(struct tokenizer **tokenizer)
{
	*tokenizer = tokenizer_free(*tokenizer);
}

/* Any bytes are a text; the array is freed with array_free(). */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t n_bytes,
		     uint32_t **ret_ids, size_t *ret_n_ids);
/* The bytes of one token; "" for an id that is none. May end inside a UTF-8 sequence. */
const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t id, size_t *ret_n_bytes);

/* Bytes of the first word of a text, as the pattern of GPT-2 cuts it; 0 only for an empty text. */
size_t tokenizer_word(const char *text, size_t n_bytes);

#endif
