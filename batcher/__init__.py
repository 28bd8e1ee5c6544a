"""Push a file of requests through the OpenAI API as fast as your limits allow."""
